"""Loops over one block of a stack, compiled by numba: numpy arrays in, one output array filled in place.

Inner loops run over columns, without a branch, so that they become vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from evomerge.variation.merge.kernels.base import STEPS

_CHUNK = 1024  # columns whose temporaries stay in the first-level cache
_SAMPLE = 1024
_ABS = np.uint32(0x7FFFFFFF)  # a float32's bits without the sign order as magnitudes do


def compiled(function):
    """Compile without Python's lock, and keep the result on disk where there is a place for it.

    Division by zero gives inf or nan, as in numpy: Python's check for it would keep a loop from being vectorised.
    """
    try:
        return njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return njit(function, nogil=True, error_model="numpy")


@compiled
def split_mix(seed, first, words):
    """Fill ``words`` (uint16, a multiple of 4 long) from the 64-bit number ``first`` on of a stream (see ``Drop``)."""
    for place in range(words.size // 4):
        z = seed + np.uint64(first + place + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        words[4 * place] = np.uint16(z)
        words[4 * place + 1] = np.uint16(z >> np.uint64(16))
        words[4 * place + 2] = np.uint16(z >> np.uint64(32))
        words[4 * place + 3] = np.uint16(z >> np.uint64(48))


@compiled
def _load(row, threshold, start, seed, limit, density, words, value):
    """Write a chunk of a parent, which begins at column ``start``, into ``value``: trimmed, then dropped at random.

    The chunk begins at a multiple of 4 if entries are dropped.
    """
    zero = np.float32(0)
    for j in range(row.size):
        value[j] = row[j] if abs(row[j]) >= threshold else zero
    if limit < STEPS:
        split_mix(seed, start // 4, words)
        for j in range(row.size):
            value[j] = value[j] / density if words[j] < limit else zero


@compiled
def weighted_sum(stack, weights, start, stop, seeds, limit, density, out):
    """``out[start:stop] = sum_i weights_i x_i``, in the order of the rows."""
    value = np.empty(_CHUNK, np.float32)
    words = np.empty(_CHUNK, np.uint16)
    for a in range(start, stop, _CHUNK):
        b = min(a + _CHUNK, stop)
        total = out[a:b]
        for i in range(stack.shape[0]):
            row, weight = stack[i, a:b], weights[i]
            if limit < STEPS:
                _load(row, np.float32(0), a, seeds[i], limit, density, words, value)
                row = value[: b - a]
            if i == 0:
                for j in range(total.size):
                    total[j] = weight * row[j]
            else:
                for j in range(total.size):
                    total[j] += weight * row[j]


@compiled
def trim(stack, blocks, thresholds, out):
    """Copy blocks ``(part, start, stop)`` with what is below its part's threshold set to 0."""
    for part, start, stop in blocks:
        for i in range(stack.shape[0]):
            row, kept, threshold = stack[i, start:stop], out[i, start:stop], thresholds[i, part]
            for j in range(row.size):
                kept[j] = row[j] if abs(row[j]) >= threshold else np.float32(0)


@compiled
def elect(stack, blocks, thresholds, seeds, limit, density, votes, scales, shares, least, dropped_count, out):
    """Write the average of who agrees with the elected sign (see ``Ballot``) for blocks ``(part, start, stop)``."""
    for part, start, stop in blocks:
        _elect(stack, start, stop, thresholds[:, part], seeds, limit, density,
               votes, scales, shares, least, dropped_count, out)  # fmt: skip


@compiled
def _elect(stack, start, stop, thresholds, seeds, limit, density, votes, scales, shares, least, dropped_count, out):
    n = stack.shape[0]
    values = np.empty((n, _CHUNK), np.float32)
    vote = np.empty(_CHUNK, np.float64)
    elected = np.empty(_CHUNK, np.float32)
    divisor = np.empty(_CHUNK, np.float32)
    words = np.empty(_CHUNK, np.uint16)
    for a in range(start, stop, _CHUNK):
        b = min(a + _CHUNK, stop)
        size = b - a
        vote[:size] = 0
        for i in range(n):
            _load(stack[i, a:b], thresholds[i], a, seeds[i], limit, density, words, values[i])
            value, weight = values[i, :size], votes[i]
            for j in range(size):
                vote[j] += np.float64(value[j]) * weight
        for j in range(size):
            elected[j] = np.float32(1) if vote[j] >= 0 else np.float32(-1)
        divisor[:size] = 0
        total = out[a:b]
        total[:] = 0
        for i in range(n):
            _count(values[i, :size], stack[i, a:b], thresholds[i], elected, votes[i] >= 0,
                   scales[i], shares[i], dropped_count, total, divisor)  # fmt: skip
        for j in range(size):
            total[j] = total[j] / divisor[j] if abs(divisor[j]) > least else total[j]


@compiled
def _count(value, carrier, threshold, elected, upright, scale, share, dropped_count, total, divisor):
    """Add one parent to the total and to the divisor, where it agrees."""
    zero = np.float32(0)
    side = np.float32(1) if upright else np.float32(-1)
    if dropped_count:
        for j in range(value.size):
            total[j] += value[j] * scale if value[j] * (elected[j] * side) > zero else zero
            counts = (carrier[j] * (elected[j] * side) > zero) & (abs(carrier[j]) >= threshold)
            divisor[j] += share if counts else zero
    else:
        for j in range(value.size):
            agrees = value[j] * (elected[j] * side) > zero
            total[j] += value[j] * scale if agrees else zero
            divisor[j] += share if agrees else zero


@compiled
def _at_least(bits, limit):
    count = np.int64(0)
    for j in range(bits.size):
        count += np.int64((bits[j] & _ABS) >= limit)
    return count


@compiled
def _bisect(bits, rank):
    """Return the ``rank``-th largest magnitude's bits, found bit by bit; counting is a vector instruction."""
    found = np.uint32(0)
    for place in range(30, -1, -1):
        candidate = found | np.uint32(1 << place)
        if _at_least(bits, candidate) >= rank:
            found = candidate
    return found


@compiled
def kth_magnitudes(bits, items, found):
    """Write the bits of the ``keep``-th largest magnitude of each ``(row, part, start, stop, keep)``."""
    for row, part, start, stop, keep in items:
        found[row, part] = kth_magnitude(bits[row], start, stop, keep)


@compiled
def kth_magnitude(row, start, stop, keep):
    """Return the bits of the ``keep``-th largest magnitude of ``row[start:stop]`` (bits of float32), exactly.

    A sample brackets it; one pass counts what is above the bracket and collects what is inside. Where the
    bracket misses (rare), or holds too much (many equal entries), all entries are bisected.
    """
    bits = row[start:stop]
    size = bits.size
    if size <= 4 * _SAMPLE:
        return _bisect(bits, keep)
    sample = bits[:: size // _SAMPLE].copy()
    expected = sample.size * keep / size
    spread = 4 * np.sqrt(expected * (1 - keep / size)) + 2
    high = _bisect(sample, max(1, np.int64(expected - spread)))
    low = _bisect(sample, min(sample.size, np.int64(expected + spread) + 1))
    above = _at_least(bits, high + np.uint32(1))
    inside = np.empty(size // 4 + _CHUNK, np.uint32)
    count = _collect(bits, low, high - low, inside)
    if above < keep <= above + count:
        return _bisect(inside[:count], keep - above)
    return _bisect(bits, keep)


@compiled
def _collect(bits, low, width, inside):
    """Copy the magnitudes in ``[low, low + width]`` and return their number, or -1 if they do not fit.

    Most groups of eight hold none, which one comparison tells.
    """
    count = 0
    hits = np.zeros(_CHUNK, np.uint8)
    groups = hits.view(np.uint64)
    for a in range(0, bits.size, _CHUNK):
        chunk = bits[a : min(a + _CHUNK, bits.size)]
        hits[:] = 0
        for j in range(chunk.size):
            hits[j] = (chunk[j] & _ABS) - low <= width
        if count + chunk.size > inside.size:
            return -1
        for group in range(groups.size):
            if groups[group]:
                for j in range(8 * group, min(8 * group + 8, chunk.size)):
                    inside[count] = chunk[j] & _ABS
                    count += np.int64(hits[j])
    return count
