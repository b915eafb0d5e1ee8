"""Solve a student in closed form: no gradient step and no labels, for networks with residual connections."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.numerics.channel_selection import LayerInputStats
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.rectified_regression import Clamp, refine_solution
from ka_ray.numerics.ridge import RIDGES, LayerSolution, solve
from ka_ray.numerics.samples import LayerSamples, Merge, merged_moments
from ka_ray.student.channel_codes import ChannelCode, choice_of_channels, choose_code
from ka_ray.student.linear_layers import apply_solution, extract_patches
from ka_ray.student.lockstep import Lockstep
from ka_ray.student.solvable_sums import (SolvableLayer, SolvableSum, find_solvable_sums, get_module, value_users)
from ka_ray.student.tied_prototype import find_groups
from ka_ray.student.trace import trace_network
from ka_ray.teachers import Teacher

import os
BUDGET = int(float(os.environ.get("BUDGET", 40e6)))
REFINE = int(os.environ.get("REFINE", 20))
STAT_IMAGES = int(os.environ.get("STAT_IMAGES", 1000))
CHOICE = os.environ.get("CHOICE", "readers")
HELD_EVERY = 10


@dataclass(frozen=True)
class LayerError:
    name: str
    error: float
    ridge: float
    seconds: float


def solve_student(network, preprocess, teachers, label_sets, batches, merge=lambda x: x, report=lambda e: None):
    solver = BlockSolver(network, preprocess, teachers, label_sets, batches, merge, report)
    return solver.run()


class BlockSolver:
    def __init__(self, network, preprocess, teachers, label_sets, batches, merge, report):
        self.student = copy.deepcopy(network).eval()
        self.teachers, self.label_sets, self.merge, self.report = teachers, label_sets, merge, report
        self.graph, _ = trace_network(self.student)
        self.output = next(n for n in self.graph.nodes if n.op == "output").args[0]
        self.sums = find_solvable_sums(self.student, self.graph)
        self.deferred = {n: s.root for s in self.sums.values() for n in s.inner}
        self.nets = [t.network.eval() for t in teachers] + [self.student]
        pre = [t.preprocess for t in teachers] + [preprocess]
        names = [t.name for t in teachers] + ["student"]
        self.inputs = [[p(b[n]) for p, n in zip(pre, names)] for b in batches]
        self.groups, self.of, self.shapes = find_groups(self.student, self.graph, self.inputs[0][-1][:1])
        self.T = len(teachers)
        self.t0 = time.perf_counter()

    def run(self):
        with torch.no_grad():
            self.codes = self.choose_codes()
            return self.student, self.solve_pass()

    # ---- statistics and codes
    def choose_codes(self):
        inputs, n = [], 0
        for b in self.inputs:
            inputs.append([x for x in b[:-1]])
            n += len(b[0])
            if n >= STAT_IMAGES: break
        stats = {}
        layers = {l.output: l for s in self.sums.values() for l in s.layers}
        at = {n: l.output for l in layers.values() for n in l.output.all_input_nodes if l.norm_path}
        lock = Lockstep(self.nets[:-1], self.graph, inputs, at)
        for node in self.graph.nodes:
            if node.op == "output": break
            if node.op != "placeholder": lock.compute(node, slice(None))
            if node in layers:
                l = layers[node]
                gid, rep = self.of[l.source]
                if not self.groups[gid].fixed and getattr(l.layer(self.student), "groups", 1) == 1:
                    stats.setdefault(gid, []).append((l, node, *self.reader_stats(lock, l)))
            # keep source alive: computed_at not needed since layer output follows
            lock.forget_after(node)
        codes = {}
        order = sorted((g for g in range(len(self.groups)) if not self.groups[g].fixed), key=lambda g: (-self.num_writers(g), -g))
        for gid in order:
            if gid not in stats: raise InputError(f"group {gid} has no reader")
            codes[gid] = self.choose(gid, stats[gid], codes)
        return codes

    def num_writers(self, gid):
        return 1 if sum(self.of[l.output][0] == gid and getattr(l.layer(self.student), "groups", 1) == 1 for s in self.sums.values() for l in s.layers) > 1 else 0

    def choose(self, gid, readers, codes):
        g = self.groups[gid]
        S = sum(t_width for t_width in [g.width] * self.T)
        listed = []
        if CHOICE.startswith("teacher") and self.num_writers(gid):
            k = int(CHOICE[-1])
            return choice_of_channels(range(k * g.width, (k + 1) * g.width), S)
        for l, node, cov, cross, var in readers:
            target = self.of[node][0]
            if target in codes:
                w = codes[target].weight
                cross = cross @ w.T
                tv = (w @ var @ w.T).trace()
            else: tv = var.trace()
            listed.append(LayerInputStats(cov, cross / tv.clamp_min(1e-300).sqrt(), len(cov) // S))
        return choose_code(listed, g.width, g.linear)

    def reader_stats(self, lock, l):
        layer = l.layer(self.student)
        shape = self.shapes[l.output]
        avail = math.prod(shape[2:])
        D = layer.weight[0].numel() * self.T; Tn = len(layer.weight) * self.T
        n_img = sum(len(lock.value(l.source, b, 0)) for b in range(len(lock)))
        per = max(1, min(avail, int(min(BUDGET / (D + Tn), max(10000, 15 * D)) / n_img)))
        rows = []
        gen = torch.Generator().manual_seed(0)
        for b in range(len(lock)):
            x = lock.stacked(l.source, b, self.T); y = lock.stacked(l.output, b, self.T)
            pos = sample_positions(torch.rand(len(x), generator=gen), avail, per)
            rows.append(torch.cat([extract_patches(layer, x, pos), pick(y, pos, 1)], dim=3).flatten(0, 1))
        [m] = merged_moments(torch.cat(rows), self.merge)
        c = m.covariance
        return c[:D, :D], c[:D, D:], c[D:, D:]

    # ---- solving
    def solve_pass(self):
        lock = Lockstep(self.nets, self.graph, self.inputs, self.deferred)
        errors = []
        for node in self.graph.nodes:
            if node.op == "output": break
            if node.op != "placeholder":
                lock.compute(node, slice(0, self.T))
                if node in self.sums:
                    s = self.sums[node]
                    errors.append(self.solve_sum(lock, s))
                    self.report(errors[-1])
                    for inner in [n for n in self.graph.nodes if n in s.inner] + [node]:
                        lock.compute(inner, slice(self.T, None))
                elif node not in self.deferred:
                    lock.compute(node, slice(self.T, None))
            lock.forget_after(node)
        return errors

    def target(self, lock, s, b):
        stacked = lock.stacked(s.root, b, self.T)
        if s.root is self.output:
            y = self.label_sets.amalgamate(stacked)
        else:
            y = self.codes[self.of[s.root][0]].encode(stacked.movedim(1, -1)).movedim(-1, 1)
        for o in s.others:
            y = y - lock.value(o, b)
        return y

    def solve_sum(self, lock, s):
        layers = [l.layer(self.student) for l in s.layers]
        G = max(getattr(l, "groups", 1) for l in layers)
        assert G == 1 or len(layers) == 1, "sum with grouped"
        Tn = len(layers[0].weight) // G
        D = sum(l.weight[0].numel() for l in layers)
        avail = math.prod(self.shapes[s.root][2:])
        n_img = sum(len(lock.value(s.root, b, 0)) for b in range(len(lock)))
        per = max(1, min(avail, int(min(BUDGET / (D + Tn) / G, max(20000, 40 * D)) / n_img)))
        rows, held, off = [], [], []
        gen = torch.Generator().manual_seed(0)
        i = 0
        clamp = self.clamp_after(s.root)
        for b in range(len(lock)):
            y = self.target(lock, s, b)
            pos = sample_positions(torch.rand(len(y), generator=gen), avail, per)
            x = [extract_patches(m, lock.value(l.source, b), pos) for l, m in zip(s.layers, layers)]
            rows.append(torch.cat([*x, pick(y, pos, G)], dim=3).flatten(0, 1))
            h = (torch.arange(i, i + len(y)) % HELD_EVERY == 0)[:, None].expand(-1, pos.shape[1]).flatten()
            i += len(y); held.append(h)
            if clamp is not None:
                o = torch.stack([lock.value(o, b) for o in s.others]).sum(0) if s.others else torch.zeros_like(y)
                off.append(pick(o, pos, G).flatten(0, 1))
        samples = LayerSamples(torch.cat(rows), torch.cat(held), Tn)
        fit, judge = samples.moments(False, self.merge), samples.moments(True, self.merge)
        sol = solve(fit, judge, Tn, RIDGES)
        ms = [a.merge(b) for a, b in zip(fit, judge)]
        err = sol.relative_error
        if clamp is not None and REFINE:
            offset = torch.cat(off)
            before = self.clamped_error(samples, offset, sol, clamp)
            sol = refine_solution(sol, samples.inputs, samples.targets, ms, OffsetClamp(clamp, offset), REFINE, self.merge)
            after = self.clamped_error(samples, offset, sol, clamp)
            self.last = (before, after)
        else: self.last = None
        self.apply(sol, s, layers, ms)
        name = "+".join(l.path for l in s.layers)
        e = LayerError(name, err, sol.ridge, time.perf_counter() - self.t0)
        if os.environ.get("VERBOSE"): print(f"{name:40s} err {err:.3f} ridge {sol.ridge:g} clamp {self.last} n {len(samples.joint)} D {D} per {per} {e.seconds:.0f}s", flush=True)
        return e

    def clamped_error(self, samples, offset, sol, clamp):
        m = samples.held_out
        x, y, o = samples.inputs[m], samples.targets[m], offset[m]
        est = torch.einsum("ngd,gtd->ngt", x, sol.weight.float()) + sol.bias.float()
        a = (est + o).clamp(clamp.low, clamp.high); t = (y + o).clamp(clamp.low, clamp.high)
        return float((a - t).square().sum() / (t - t.mean(0)).square().sum().clamp_min(1e-30))

    def clamp_after(self, node):
        kinds = set()
        for u in value_users(node):
            while True:
                m = get_module(self.student, u)
                if isinstance(m, nn.Identity): u = value_users(u)[0]; continue
                break
            if isinstance(m, nn.ReLU6) : kinds.add((0.0, 6.0))
            elif isinstance(m, nn.ReLU) or u.target in (torch.relu, nn.functional.relu, "relu", "relu_"): kinds.add((0.0, float("inf")))
            else: kinds.add(None)
        return Clamp(*kinds.pop()) if len(kinds) == 1 and None not in kinds else None

    def apply(self, sol, s, layers, ms):
        start = 0
        for i, (l, m) in enumerate(zip(s.layers, layers)):
            d = m.weight[0].numel()
            w = sol.weight[:, :, start:start + d]
            # variance of this layer's own output
            mean = torch.stack([w[g] @ ms[g].mean[start:start + d] for g in range(len(ms))])
            var = torch.stack([((w[g] @ ms[g].covariance[start:start + d, start:start + d]) * w[g]).sum(1) for g in range(len(ms))])
            bias = sol.bias if i == 0 else torch.zeros_like(sol.bias)
            apply_solution(LayerSolution(w, bias, mean + bias, var, sol.ridge, 0.0), m, l.norm(self.student))
            start += d


class OffsetClamp:
    def __init__(self, clamp, offset): self.clamp, self.offset = clamp, offset
    def residual(self, est, target): return self.clamp.residual(est + self.offset, target + self.offset)


def pick(value, positions, groups):
    flat = value.flatten(2).transpose(1, 2) if value.dim() > 2 else value[:, None]
    if value.dim() > 2:
        flat = flat[torch.arange(len(flat))[:, None], positions]
    return flat.unflatten(2, (groups, -1))
