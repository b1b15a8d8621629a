"""Codes of languages: whatever programs call a language, and Whisper's own code of it."""

from __future__ import annotations

import re

from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from .suggest import did_you_mean

DETECT = ("auto", "und")
"""What means that the language is to be detected; ``und`` is BCP 47's "undetermined"."""

_SYNONYMS = """
iw he  in id  ji yi  jv jw  mo ro  sh sr  nb no  fil tl  cmn zh  nan zh  wuu zh  zh-yue yue  no-nyn nn
afr af  amh am  ara ar  arb ar  asm as  aze az  azj az  bak ba  bel be  ben bn  bod bo  tib bo  bos bs  bre br  bul bg
cat ca  ces cs  cze cs  cym cy  wel cy  dan da  deu de  ger de  ell el  gre el  eng en  est et  ekk et  eus eu  baq eu
fao fo  fas fa  per fa  pes fa  prs fa  fin fi  fra fr  fre fr  glg gl  guj gu  hat ht  hau ha  heb he  hin hi  hrv hr
hun hu  hye hy  arm hy  ind id  isl is  ice is  ita it  jav jw  jpn ja  kan kn  kat ka  geo ka  kaz kk  khm km  kor ko
lao lo  lat la  lav lv  lvs lv  lin ln  lit lt  ltz lb  mal ml  mar mr  mkd mk  mac mk  mlg mg  plt mg  mlt mt  mon mn
khk mn  mri mi  mao mi  msa ms  may ms  zsm ms  mya my  bur my  nep ne  npi ne  nld nl  dut nl  nno nn  nob no  nor no
oci oc  pan pa  pol pl  por pt  pus ps  ron ro  rum ro  rus ru  san sa  sin si  slk sk  slo sk  slv sl  sna sn  snd sd
som so  spa es  sqi sq  alb sq  als sq  srp sr  sun su  swa sw  swh sw  swe sv  tam ta  tat tt  tel te  tgk tg  tgl tl
tha th  tuk tk  tur tr  ukr uk  urd ur  uzb uz  uzn uz  vie vi  yid yi  ydd yi  yor yo  zho zh  chi zh
"""
_CODES = dict(zip(_SYNONYMS.split()[::2], _SYNONYMS.split()[1::2]))
"""Codes of ISO 639-2 and 639-3, deprecated ones, and members of larger languages → Whisper's."""


def language_code(name: str | None) -> str | None:
    """Return Whisper's code of a language, or None where it is to be detected.

    Parameters
    ----------
    name : str, optional
        In any case: a code of Whisper's or of ISO 639, also a deprecated one; a tag of BCP 47 (``pt-BR``,
        ``zh-Hant-TW``) or a locale (``en_US.UTF-8``), of which the language counts; a name in English; or ``auto``.

    Raises
    ------
    ValueError
        If Whisper knows no such language.

    Examples
    --------
    >>> [language_code(name) for name in ("en-US", "zh_TW", "iw", "German", "nob", "auto")]
    ['en', 'zh', 'he', 'de', 'no', None]
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise ValueError(f"a language is given by its name or code, not as {name!r}")
    tag = re.split(r"[.@(]", name.lower())[0].strip().replace("_", "-")
    subtags = tag.split("-")
    if not name.strip() or subtags[0] in DETECT:
        return None
    for candidate in (tag.replace("-", " "), "-".join(subtags[:2]), subtags[0]):
        code = TO_LANGUAGE_CODE.get(candidate) or _CODES.get(candidate, candidate)
        if code in LANGUAGES:
            return code
    raise ValueError(f"Whisper knows no language {name!r}; {did_you_mean(name, language_names())}")


def language_names() -> list[str]:
    """Return the codes and names of Whisper's languages, as openai-whisper's command line lists them."""
    return sorted(LANGUAGES) + sorted(known.title() for known in TO_LANGUAGE_CODE)
