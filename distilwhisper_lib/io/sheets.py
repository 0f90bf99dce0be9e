"""A sheet of rows as people and programs save it: CSV as spreadsheets write it, or JSON lines.

What a sheet says of itself is enough to read it (a byte-order mark, the names of its columns); what
nobody can know, such as an old 8-bit alphabet, is refused in a sentence that says how to save it.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distilwhisper_lib.errors import Faults, UserError, reason
from distilwhisper_lib.io.files import parse_json

# A row as read: its line in the file (for messages) and its fields as text, by column.
Row = tuple[int, dict[str, str]]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n', re.I)  # what Excel writes and reads
# The longer mark first: UTF-32's begins as UTF-16's does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# How Excel's and LibreOffice's own files begin, new (zip) and old.
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


def read_sheet(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a sheet in its order, but for those without a single field.

    CSV (separated by comma, semicolon, tab or bar: by whichever its header has most of `columns`,
    unless a line ``sep=;`` says so) or, where the name ends in .jsonl, one JSON object a line; in
    UTF-8 or UTF-16. Names of columns are taken in any case; one without name and fields is none.
    Fields are text as they stand: "null" and "NA" are words, white space around them is kept.

    Raises `UserError`, naming the file and its line, for another alphabet, a column that stands
    twice, a row of the wrong length and what is neither CSV nor JSON.
    """
    text = _text(path)
    rows = _json_rows(path, text) if path.suffix == ".jsonl" else _csv_rows(path, text, columns)
    return [(number, fields) for number, fields in rows if any(map(str.strip, fields.values()))]


def _text(path: Path) -> str:
    """The sheet decoded, by its byte-order mark, else as UTF-8."""
    raw = path.read_bytes()
    if raw.startswith(_WORKBOOKS):
        raise UserError(
            f"{path} is a workbook under another name: open it and save it as CSV in UTF-8."
        )
    coding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)
    if coding is None and b"\0" in raw[:2]:  # the names of columns are ASCII
        coding = "utf-16-be" if raw[0] == 0 else "utf-16-le"
    try:
        return raw.decode(coding or "utf-8-sig")
    except UnicodeDecodeError as error:
        if coding:
            said = f"is not whole as {coding.upper()} ({error.reason})"
        else:
            line = raw.count(b"\n", 0, error.start) + 1
            said = (
                f"is not UTF-8: line {line} holds the byte 0x{raw[error.start]:02X}, as older "
                "programs write letters with marks"
            )
        raise UserError(
            f"{path} {said}; save it as UTF-8 (in Excel 'CSV UTF-8', in LibreOffice character set "
            "'Unicode (UTF-8)')."
        ) from None


def _csv_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    # The csv module, not pandas: it guesses no types, and it notices a row of the wrong length.
    named = _NAMED_SEPARATOR.match(text)
    skipped = named.end() if named else 0
    separator = named[1] if named else _separator(text, columns)
    lines = csv.reader(io.StringIO(text[skipped:], newline=""), strict=True, delimiter=separator)
    begun, faults = 1, []
    try:
        header = _header(path, next((row for row in lines if any(map(str.strip, row))), []))
        begun = lines.line_num + 1
        for fields in lines:
            number = lines.line_num + bool(skipped)
            begun = lines.line_num + 1
            while len(fields) > len(header) and not fields[-1].strip():  # a spreadsheet's margin
                fields.pop()
            if not fields:  # an empty line
                continue
            if len(fields) != len(header):
                fault = (
                    f"{len(fields)} fields, expected {len(header)}; put texts with "
                    f"{_SEPARATORS.get(separator, repr(separator))} between double quotes."
                )
                faults.append((f"{path}, line {number}", fault))
                continue
            row = list(zip(header, fields, strict=True))
            if nameless := [field for name, field in row if not name and field.strip()]:
                fault = (
                    f"{reprlib.repr(nameless[0])} stands in a column without a name; name it on "
                    "the first line, or drop it."
                )
                faults.append((f"{path}, line {number}", fault))
                continue
            yield number, {name: field for name, field in row if name}
    except csv.Error as error:
        first, last = begun + bool(skipped), lines.line_num + bool(skipped)
        to = f" to {last}" if last > first else ""
        raise UserError(
            f"{path}, line {first}{to}: not CSV ({error}), often for a double quote that opens and "
            "does not close; write a double quote within a text twice."
        ) from error
    if faults:
        raise Faults(faults)


def _separator(text: str, columns: Sequence[str]) -> str:
    """The separator under which the first line names most of the columns; a comma if none does."""
    margin = "".join(_SEPARATORS) + ' "'
    first = next((line for line in text.splitlines() if line.strip(margin)), "")
    return max(_SEPARATORS, key=lambda mark: len(_names(first.split(mark)) & set(columns)))


def _names(header: Sequence[str]) -> set[str]:
    return {_column(name.strip().strip('"')) for name in header}


def _column(name: str) -> str:
    """File Name -> file_name."""
    return "_".join(name.casefold().split())


def _header(path: Path, fields: list[str]) -> list[str]:
    header = [_column(name) for name in fields]
    while header and not header[-1]:
        header.pop()
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise UserError(f"{path} has the column {twice[0]!r} twice: keep one of them.")
    return header


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
        except ValueError as error:  # also a number of 5,000 digits
            what = error.msg if isinstance(error, json.JSONDecodeError) else reason(error)
            raise UserError(
                f"{path}, line {number}: not JSON ({what}); write one object a line."
            ) from error
        if not isinstance(fields, dict):
            raise UserError(f"{path}, line {number}: expected one JSON object a line.")
        if len(row := {_column(key): value for key, value in fields.items()}) != len(fields):
            raise UserError(f"{path}, line {number}: a name stands twice: keep one of them.")
        yield number, {key: _as_text(path, number, key, value) for key, value in row.items()}


def _as_text(path: Path, number: int, key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(
            f"{path}, line {number}: {key} is {reprlib.repr(value)}, "
            "expected text or a number; correct it."
        )
    return str(value)
