"""Records in ArrayRecord files, whose errors name the file."""

from collections.abc import Sequence

import grain
from array_record.python.array_record_module import ArrayRecordReader


class ArrayRecords:
    """Random access to the records of several files, one file after the other.

    Args:
      files: local files.
      remedy: what the user can do where one is damaged, for messages: 'delete the folder to make it again'.

    Raises:
      ValueError: here or on access, a damaged file; names it.
    """

    def __init__(self, files: Sequence[str], remedy: str):
        self._files, self._remedy = list(files), remedy
        try:
            self._records = grain.sources.ArrayRecordDataSource(self._files)
        except Exception as error:  # The reader raises whatever its C++ part does.
            raise self._damaged(self._first_unreadable(), error) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._records[index]
        except Exception as error:  # As above.
            raise self._damaged(self._file_of(index), error) from error

    def _damaged(self, file: str, error: Exception) -> ValueError:
        return ValueError(f"{file}: damaged ({error}); {self._remedy}")

    def _first_unreadable(self) -> str:
        """The first file that cannot be opened by itself."""
        for file in self._files:
            try:
                grain.sources.ArrayRecordDataSource([file])
            except Exception:  # As above; the caller reports it.
                return file
        return ", ".join(self._files)

    def _file_of(self, index: int) -> str:
        for file in self._files:
            reader = ArrayRecordReader(file)
            records = reader.num_records()
            reader.close()
            if index < records:
                return file
            index -= records
        raise IndexError(index)
