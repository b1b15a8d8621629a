"""The paper's noise study: word error rates in noise, and linear probes of encoders for sound classes."""
