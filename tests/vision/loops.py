"""The modules for maps as loops over single numbers in float64: oracles that know equations alone.

Inputs, weights and results are NumPy arrays; maps ``(B, C, H, W)`` may have other axes behind C.
"""

import math
from itertools import product

import numpy as np


def affine(weight, bias, vector):
    """``weight vector + bias``, with any axes of length 1 behind the weight's two."""
    weight = weight.reshape(weight.shape[0], weight.shape[1])
    out = []
    for o in range(len(weight)):
        total = 0.0 if bias is None else float(bias[o])
        for i in range(len(vector)):
            total += float(weight[o, i]) * float(vector[i])
        out.append(total)
    return out


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def softmax(energies):
    """Of a list; None stands for what may not be read."""
    largest = max(e for e in energies if e is not None)
    powers = [0.0 if e is None else math.exp(e - largest) for e in energies]
    return [power / sum(powers) for power in powers]


def places(x):
    return list(product(*(range(n) for n in x.shape[2:])))


def pooled(x, b, c, pool):
    values = [float(x[(b, c, *place)]) for place in places(x)]
    return max(values) if pool == "max" else sum(values) / len(values)


def mlp(first, first_bias, second, second_bias, vector):
    hidden = [max(0.0, h) for h in affine(first, first_bias, vector)]
    return affine(second, second_bias, hidden)


def channel_logits(x, mlps, pools):
    """``(B, C)``; ``mlps`` has weight, bias, weight, bias for each of ``pools``."""
    B, C = x.shape[:2]
    out = np.zeros((B, C))
    for b in range(B):
        for weights, pool in zip(mlps, pools, strict=True):
            logits = mlp(*weights, [pooled(x, b, c, pool) for c in range(C)])
            for c in range(C):
                out[b, c] += logits[c]
    return out


def spatial_logits(x, kernel, describe=None, norm=None):
    """``(B, H, W)``.

    ``describe`` is the weight of the 1x1 convolution, instead of maximum and mean; ``norm`` has
    gain, bias, mean, variance and eps.
    """
    B, C, H, W = x.shape
    described = np.zeros((B, kernel.shape[1], H, W))
    for b, y, x_ in product(range(B), range(H), range(W)):
        values = [float(x[b, c, y, x_]) for c in range(C)]
        if describe is None:
            described[b, :, y, x_] = max(values), sum(values) / C
        else:
            described[b, :, y, x_] = affine(describe, None, values)
    out, reach = np.zeros((B, H, W)), kernel.shape[2] // 2
    for b, y, x_ in product(range(B), range(H), range(W)):
        for d, dy, dx in product(*(range(n) for n in kernel.shape[1:])):
            row, column = y + dy - reach, x_ + dx - reach
            if 0 <= row < H and 0 <= column < W:
                out[b, y, x_] += kernel[0, d, dy, dx] * described[b, d, row, column]
        if norm is not None:
            gain, bias, mean, variance, eps = (float(number) for number in norm)
            out[b, y, x_] = gain * (out[b, y, x_] - mean) / math.sqrt(variance + eps) + bias
    return out


def gated(x, channel=None, spatial=None):
    """``x`` times one sigmoid of the sum of what logits are given."""
    out = np.zeros(x.shape)
    for b, c, y, x_ in product(*(range(n) for n in x.shape)):
        logit = 0.0 if channel is None else channel[b, c]
        logit += 0.0 if spatial is None else spatial[b, y, x_]
        out[b, c, y, x_] = x[b, c, y, x_] * sigmoid(logit)
    return out


def vectors(x, b):
    """The channels of every position of map ``b``, in row-major order."""
    return [[float(x[(b, c, *place)]) for c in range(x.shape[1])] for place in places(x)]


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def max_pooled(x, edges):
    """The maxima of blocks; the ones at the far edges may be cut."""
    shape = [-(-n // edge) for n, edge in zip(x.shape[2:], edges, strict=True)]
    out = np.full((*x.shape[:2], *shape), -math.inf)
    for b, c in product(range(x.shape[0]), range(x.shape[1])):
        for place in places(x):
            block = tuple(p // edge for p, edge in zip(place, edges, strict=True))
            out[(b, c, *block)] = max(out[(b, c, *block)], x[(b, c, *place)])
    return out


def mapped(x, weight, bias):
    """A 1x1 convolution."""
    out = np.zeros((x.shape[0], len(weight), *x.shape[2:]))
    for b in range(x.shape[0]):
        for place in places(x):
            out[(b, slice(None), *place)] = affine(weight, bias, x[(b, slice(None), *place)])
    return out


def responses(queries, keys, values, coefficients):
    """``sum_j f_ij v_j`` for each map; ``coefficients`` gives row f_i of query i and all keys."""
    out = np.zeros((values.shape[0], values.shape[1], *queries.shape[2:]))
    for b in range(len(values)):
        read, given = vectors(keys, b), vectors(values, b)
        for i, (place, query) in enumerate(zip(places(queries), vectors(queries, b), strict=True)):
            row = coefficients(i, query, read)
            for coefficient, value in zip(row, given, strict=True):
                for c in range(len(value)):
                    out[(b, c, *place)] += coefficient * value[c]
    return out


def softmax_rows(scale=1.0, allowed=lambda i, j: True):
    """Coefficients by a softmax over the keys that ``allowed`` lets a query read."""

    def row(i, query, keys):
        return softmax(
            [scale * dot(query, key) if allowed(i, j) else None for j, key in enumerate(keys)]
        )

    return row


def dot_rows(i, query, keys):
    return [dot(query, key) / len(keys) for key in keys]


def concat_rows(weight):
    """Coefficients ``relu(w . [query, key]) / M``."""

    def row(i, query, keys):
        return [max(0.0, dot(weight, [*query, *key])) / len(keys) for key in keys]

    return row


def normalised(x, gain, bias, eps, stats=None):
    """Batch norm by ``stats``, mean and variance of each channel, or else by the batch's own."""
    out = np.zeros(x.shape)
    for c in range(x.shape[1]):
        if stats is None:
            numbers = [float(x[(b, c, *p)]) for b in range(len(x)) for p in places(x)]
            mean = sum(numbers) / len(numbers)
            variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
        else:
            mean, variance = float(stats[0][c]), float(stats[1][c])
        for b in range(len(x)):
            for place in places(x):
                centred = float(x[(b, c, *place)]) - mean
                out[(b, c, *place)] = gain[c] * centred / math.sqrt(variance + eps) + bias[c]
    return out


def position_step(x, query, key, value, alpha, allowed=lambda i, j: True):
    """One step of position attention; each projection is a weight and a bias."""
    q, k, v = mapped(x, *query), mapped(x, *key), mapped(x, *value)
    return x + alpha * responses(q, k, v, softmax_rows(allowed=allowed))


def channel_step(x, beta, form):
    """Channel attention."""
    B, C = x.shape[:2]
    N = len(places(x))
    out = np.array(x, dtype=float)
    for b in range(B):
        rows = [[float(x[(b, c, *place)]) for place in places(x)] for c in range(C)]
        for c in range(C):
            energies = [dot(rows[c], rows[d]) for d in range(C)]
            if form == "reversed":
                energies = [max(energies) - energy for energy in energies]
            elif form == "scaled":
                energies = [energy / N for energy in energies]
            weights = softmax(energies)
            for n, place in enumerate(places(x)):
                out[(b, c, *place)] += beta * sum(weights[d] * rows[d][n] for d in range(C))
    return out
