"""Archives: many recordings become a Parquet dataset, and nothing is lost on the way.

`transcribe_archive` splits the work into shards. Each is written under a temporary name and renamed, so that a run may
be stopped at any moment and started again. `find` asks the dataset where a word or a sound occurs.
"""

from .find import Query, find, run_sql
from .run import transcribe_archive
from .schema import SCHEMA_VERSION, row_result
from .settings import ArchiveSettings

__all__ = ["SCHEMA_VERSION", "ArchiveSettings", "Query", "find", "row_result", "run_sql", "transcribe_archive"]
