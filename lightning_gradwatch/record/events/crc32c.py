"""The checksum of TensorBoard's event files, without its own function: importing that takes longer than this package."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_MASK_DELTA = 0xA282EAD8
_BLOCK = 256
_LONG = 4 * _BLOCK
_PIECE = 1 << 16


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of the TFRecord format: CRC-32C, rotated and shifted.

    A byte at a time: a table for two falls out of the processor's cache and is slower. What is longer than a few blocks
    goes through numpy, in pieces, as that takes twelve times as much memory as the data.
    """
    crc = 0xFFFFFFFF
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        crc = (_by_blocks if len(piece) > _LONG else _by_bytes)(piece, crc)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def masked_crc32c_of_rows(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the checksum of each row of bytes, shape [rows, bytes]."""
    table = _table_array()
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return np.asarray(((crc >> 15) | (crc << 17)) + np.uint32(_MASK_DELTA), dtype=np.uint32)


def _by_bytes(data: bytes, crc: int) -> int:
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


@cache
def _table_array() -> npt.NDArray[np.uint32]:
    return np.array(_TABLE, dtype=np.uint32)


@cache
def _shifts() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """Return the register that each byte, at each place of a block, leaves behind at the block's end, and where a place's begin."""
    table = _table_array()
    shifts = [table]
    while len(shifts) < _BLOCK:
        shifts.append(table[shifts[-1] & 0xFF] ^ (shifts[-1] >> 8))
    return np.concatenate(shifts[::-1]), np.arange(_BLOCK, dtype=np.intp) * len(table)


@cache
def _first_shifts() -> list[list[int]]:
    """Return those of the first four places, in which the register before goes on."""
    return [[int(each) for each in row] for row in _shifts()[0].reshape(_BLOCK, -1)[:4]]


def _by_blocks(data: bytes, crc: int) -> int:
    # A CRC is linear: the register after a block is the XOR of what each of its bytes alone leaves, with the register
    # before XORed into its first four. Zeros in front change nothing as long as the register is 0.
    shifts, starts = _shifts()
    padding = -len(data) % _BLOCK
    padded = np.zeros(padding + len(data), np.uint8)
    padded[padding:] = np.frombuffer(data, np.uint8)
    padded[padding : padding + 4] ^= np.frombuffer(crc.to_bytes(4, "little"), np.uint8)
    left = shifts.take(padded.reshape(-1, _BLOCK) + starts)
    one, two, three, four = _first_shifts()
    crc = 0
    for alone in np.bitwise_xor.reduce(left, axis=1).tolist():
        crc = alone ^ one[crc & 0xFF] ^ two[crc >> 8 & 0xFF] ^ three[crc >> 16 & 0xFF] ^ four[crc >> 24]
    return crc
