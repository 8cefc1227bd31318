"""Deformable attention and the layers built on it against slow loops, values and gradients."""

from dataclasses import replace

import torch
from torch import Tensor

from evaluators.vad.bev_encoder import BevEncoder, EncoderLayer
from evaluators.vad.bev_geometry import cell_centers, look_up, pillar_points
from evaluators.vad.decoder import DecoderLayer
from evaluators.vad.deformable import attend_at
from tests.evaluators.vad.vad_factories import TINY, ring, stirred

CONFIG = replace(TINY, width=8, feed_forward=6, bev_hw=(3, 4), pillar_points=2, camera_points=4, bev_points=2)
IMAGE_HW = (32, 64)


def bilinear(plane_hwd: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The value at x, y in shares of the plane: four neighbours weighted by nearness, zeros outside."""
    h, w, d = plane_hwd.shape
    column, row = x * w - 0.5, y * h - 0.5
    total = plane_hwd.new_zeros(d)
    for i in (int(row.floor()), int(row.floor()) + 1):
        for j in (int(column.floor()), int(column.floor()) + 1):
            if 0 <= i < h and 0 <= j < w:
                total = total + plane_hwd[i, j] * (1 - (column - j).abs()) * (1 - (row - i).abs())
    return total


def normed(norm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def fed_forward(ffn, x: Tensor) -> Tensor:
    (first, _, _), second, _ = ffn.layers
    return x + (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias


def planes(values_ND: Tensor, sizes_hw: list[tuple[int, int]], heads: int) -> list[list[Tensor]]:
    """[level][head] planes [h, w, d]."""
    levels = values_ND.split([h * w for h, w in sizes_hw])
    return [list(level.reshape(*hw, heads, -1).unbind(2)) for level, hw in zip(levels, sizes_hw, strict=True)]


def assert_same(found: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
    ours, slow = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, wanted))
    for a, b in zip(ours, slow, strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_deformable_attention_is_a_weighted_sum_of_interpolated_values():
    sizes = [(3, 4), (2, 2)]
    value, weights = random(2, 16, 2, 3), random(2, 3, 2, 2, 2, seed=1)
    places = (0.5 + 0.4 * random(2, 3, 2, 2, 2, 2, seed=2)).detach().requires_grad_()
    wanted = []
    for b in range(2):
        at = planes(value[b].flatten(1), sizes, heads=2)
        for q in range(3):
            for a in range(2):
                samples = [
                    weights[b, q, a, level, p] * bilinear(at[level][a], *places[b, q, a, level, p])
                    for level in range(2)
                    for p in range(2)
                ]
                wanted.append(torch.stack(samples).sum(0))
    found = attend_at(value, sizes, places, weights)
    assert_same(found, torch.stack(wanted).reshape(2, 3, 6), [value, weights, places])


def slow_temporal(part, bev: Tensor, position: Tensor, centers: Tensor, grids: Tensor) -> Tensor:
    h, w = CONFIG.bev_hw
    out = []
    for q in range(h * w):
        query = torch.cat([grids[0, q], bev[q] + position[q]])
        offsets = part.sampling_offsets(query).reshape(2, 2, 2, 2)  # head, grid, point, xy
        logits = part.attention_weights(query).reshape(2, 2, 2)
        heads = []
        for a in range(2):
            total = torch.zeros(4, dtype=bev.dtype)
            for s in range(2):
                plane = planes(part.value_proj(grids[s]), [(h, w)], heads=2)[0][a]
                for p in range(2):
                    x, y = centers[q] + offsets[a, s, p] / torch.tensor([w, h])
                    total = total + logits[a, s].softmax(0)[p] * bilinear(plane, x, y) / 2
            heads.append(total)
        out.append(bev[q] + part.output_proj(torch.cat(heads)))
    return torch.stack(out)


def slow_spatial(part, bev: Tensor, features: Tensor, sizes, places: Tensor, seen: Tensor) -> Tensor:
    inner = part.deformable_attention
    at = [planes(inner.value_proj(camera), sizes, heads=2) for camera in features]
    out = []
    for q in range(len(bev)):
        offsets = inner.sampling_offsets(bev[q]).reshape(2, 2, 4, 2)  # head, level, point, xy
        weights = inner.attention_weights(bev[q]).reshape(2, 8).softmax(-1).reshape(2, 2, 4)
        total, cameras = torch.zeros(8, dtype=bev.dtype), 0
        for v in range(6):
            if not bool(seen[v, q].any()):
                continue
            cameras += 1
            heads = []
            for a in range(2):
                parts = [
                    weights[a, level, p]
                    * bilinear(at[v][level][a], *(places[v, q, p % 2] + offsets[a, level, p] / torch.tensor([w, h])))
                    for level, (h, w) in enumerate(sizes)
                    for p in range(4)
                ]
                heads.append(torch.stack(parts).sum(0))
            total = total + torch.cat(heads)
        out.append(bev[q] + part.output_proj(total / max(cameras, 1)))
    return torch.stack(out)


def test_an_encoder_layer_is_what_its_loops_say():
    layer, sizes = stirred(EncoderLayer(CONFIG)).double(), [(2, 3), (1, 2)]
    bev, position, past, features = random(12, 8), random(12, 8, seed=1), random(12, 8, seed=2), random(6, 8, 8, seed=3)
    centers = cell_centers(CONFIG.bev_hw).double() + torch.tensor([0.03, -0.05])
    points = pillar_points(CONFIG).double()
    sight = look_up(points, ring(IMAGE_HW).double()[None], IMAGE_HW)
    cameras = sight.visible_BVQ[0].sum(0)
    assert int(cameras.min()) == 0 and int(cameras.max()) == 2
    places, seen = [], []
    for matrix in ring(IMAGE_HW).double():
        u, v, depth = (points @ matrix[:3, :3].T + matrix[:3, 3]).unbind(-1)
        x, y = u / depth.clamp(min=1e-5) / 64, v / depth.clamp(min=1e-5) / 32
        places.append(torch.stack([x, y], -1))
        seen.append((depth > 1e-5) & (x > 0) & (x < 1) & (y > 0) & (y < 1))

    grids = torch.stack([past, bev])
    wanted = normed(layer.norms[0], slow_temporal(layer.attentions[0], bev, position, centers, grids))
    wanted = slow_spatial(layer.attentions[1], wanted, features, sizes, torch.stack(places), torch.stack(seen))
    wanted = normed(layer.norms[2], fed_forward(layer.ffns[0], normed(layer.norms[1], wanted)))
    found = layer(bev[None], position, centers[None], grids[None], features[None], sizes, sight)[0]
    attention = layer.attentions[1].deformable_attention
    learned = [layer.attentions[0].sampling_offsets.weight, attention.value_proj.weight, attention.attention_weights.bias]
    assert_same(found, wanted, [bev, position, past, features, *learned])


def test_every_encoder_layer_sees_the_past_beside_the_first_queries_both_moved_with_the_ego():
    encoder, sizes = stirred(BevEncoder(CONFIG)).double(), [(2, 3), (1, 2)]
    queries, past, features = random(1, 12, 8), random(1, 12, 8, seed=1), random(1, 6, 8, 8, seed=2)
    position, shift = random(12, 8, seed=3), torch.tensor([[0.1, -0.2]], dtype=torch.float64)
    sight = look_up(pillar_points(CONFIG).double(), ring(IMAGE_HW).double()[None], IMAGE_HW)
    centers = cell_centers(CONFIG.bev_hw).double() + shift
    for before, grids in ((past, torch.stack([past, queries], 1)), (None, None)):
        first = encoder.layers[0](queries, position, centers[None], grids, features, sizes, sight)
        wanted = encoder.layers[1](first, position, centers[None], grids, features, sizes, sight)
        torch.testing.assert_close(encoder(queries, position, shift, before, features, sizes, sight), wanted)


def test_a_decoder_layer_is_what_its_loops_say():
    layer, h, w = stirred(DecoderLayer(CONFIG)).double(), *CONFIG.bev_hw
    query, position, bev = random(5, 8), random(5, 8, seed=1), random(12, 8, seed=2)
    reference = random(5, 2, seed=3).sigmoid()
    attn, grid = layer.attentions[0].attn, layer.attentions[1]

    (wq, wk, wv), (bq, bk, bv) = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    q, k, v = (query + position) @ wq.T + bq, (query + position) @ wk.T + bk, query @ wv.T + bv
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = torch.stack([torch.stack([q[i, part] @ k[j, part] / 2 for j in range(5)]).softmax(0) for i in range(5)])
        heads.append(weights @ v[:, part])
    wanted = normed(layer.norms[0], query + attn.out_proj(torch.cat(heads, -1)))

    at = planes(grid.value_proj(bev), [(h, w)], heads=2)[0]
    rows = []
    for i in range(5):
        asked = wanted[i] + position[i]
        offsets = grid.sampling_offsets(asked).reshape(2, 2, 2)
        counts = grid.attention_weights(asked).reshape(2, 2).softmax(-1)
        mixed = [
            sum(counts[a, p] * bilinear(at[a], *(reference[i] + offsets[a, p] / torch.tensor([w, h]))) for p in range(2))
            for a in range(2)
        ]
        rows.append(wanted[i] + grid.output_proj(torch.cat(mixed)))
    wanted = normed(layer.norms[2], fed_forward(layer.ffns[0], normed(layer.norms[1], torch.stack(rows))))
    found = layer(query[None], position[None], bev[None], reference[None])[0]
    assert_same(found, wanted, [query, position, bev, grid.sampling_offsets.weight, attn.in_proj_weight])


def test_samples_start_around_their_points_in_a_direction_for_each_head():
    attention = DecoderLayer(replace(CONFIG, heads=4)).attentions[1]
    attention.reset()
    offsets = attention.offsets(torch.randn(1, 1, 8))[0, 0, :, 0]
    wanted = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(offsets, torch.stack([wanted, 2 * wanted], 1), atol=1e-5, rtol=0)
    assert attention.logits(torch.randn(1, 1, 8)).softmax(-1).unique().tolist() == [0.5]
