"""Trains and evaluates SR-GNN as the authors' PyTorch code does, for comparison.

    python -m benchmarks.original --data_dir=DIR --steps=400 --window=100
    python -m benchmarks.original --data_dir=DIR --epochs=5 --window=1000

The first takes some steps, to time them against ours; the second trains whole epochs
and evaluates each, to see what that code reaches. `benchmarks.as_original`, with the
same flags, does the same with our code.

DIR holds all_train_seq.txt and test.txt, pickles from a source that you trust. Written
from the paper and from what the authors' code does, step by step:

- examples are padded to the longest of all, whatever their batch;
- each batch's graphs are built by Python loops over sessions, edges and positions;
- the state at each position is gathered session by session;
- the scores are s E[1:]^T, the loss is torch's cross entropy, the optimizer torch's
  Adam with weight decay;
- the learning rate falls to a tenth after every third epoch;
- to evaluate, `topk` finds each session's 20 items, and a loop looks for the target.

Where the authors' code is slow only because of its age, this uses the fast form: lists
of arrays become one array before they become a tensor, nodes are found once per batch,
and evaluation records no gradients. torch chooses its number of threads.

Prints JSON lines with the keys of metrics.jsonl: `train/loss` and
`train/examples_per_second` for each window of steps, then the test metrics.

Axes: E examples, B batch, L positions, N nodes, D embedding, V item rows.
"""

import argparse
import json
import math
import os
import pathlib
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LEARNING_RATE, L2 = 1e-3, 1e-5
DECAY_EPOCHS, DECAY = 3, 0.1
TOP = 20


class Examples(NamedTuple):
    """Prefixes [E, L], padded with 0 at the end, and the items clicked next [E]."""

    inputs: np.ndarray
    targets: np.ndarray


def read_pickle(path: str | os.PathLike):
    """Reads one of the two pickles."""
    with open(path, "rb") as file:
        return pickle.load(file)


def pad(prefixes: Sequence[Sequence[int]], targets: Sequence[int]) -> Examples:
    """Pads prefixes to the longest of them."""
    inputs = np.zeros((len(prefixes), max(map(len, prefixes))), np.int64)
    for row, prefix in zip(inputs, prefixes, strict=True):
        row[: len(prefix)] = prefix
    return Examples(inputs, np.asarray(targets, np.int64))


def expand(sessions: Iterable[Sequence[int]]) -> Examples:
    """Turns sessions into prefixes, each with the item that follows it."""
    pairs = [
        (session[:end], session[end])
        for session in sessions
        for end in range(1, len(session))
    ]
    return pad(*zip(*pairs, strict=True))


def session_graphs(
    inputs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Builds the graphs of a batch.

    Args:
      inputs: [B, L], 0 = padding at the end.

    Returns:
      The node of each position [B, L], the nodes' items [B, N], and the incoming and
      outgoing connections side by side [B, N, 2N]. N is the largest number of nodes,
      including padding, of any session in the batch.
    """
    nodes = [np.unique(session) for session in inputs]
    most = max(map(len, nodes))
    alias, items, matrices = [], [], []
    for session, node in zip(inputs, nodes, strict=True):
        items.append(node.tolist() + [0] * (most - len(node)))
        edges = np.zeros((most, most))
        for i in range(len(session) - 1):
            if session[i + 1] == 0:
                break
            source = np.where(node == session[i])[0][0]
            target = np.where(node == session[i + 1])[0][0]
            edges[source][target] = 1
        entering = np.sum(edges, 0)
        entering[np.where(entering == 0)] = 1
        leaving = np.sum(edges, 1)
        leaving[np.where(leaving == 0)] = 1
        both = np.concatenate([edges / entering, edges.transpose() / leaving])
        matrices.append(both.transpose())
        alias.append([np.where(node == item)[0][0] for item in session])
    return np.array(alias), np.array(items), np.array(matrices, np.float32)


class GNN(nn.Module):
    """Equations 1 to 5, `step` times; the update gate is inverted."""

    def __init__(self, embedding_size: int, step: int):
        super().__init__()
        d, self.step = embedding_size, step
        self.w_ih = nn.Parameter(torch.empty(3 * d, 2 * d))
        self.w_hh = nn.Parameter(torch.empty(3 * d, d))
        self.b_ih = nn.Parameter(torch.empty(3 * d))
        self.b_hh = nn.Parameter(torch.empty(3 * d))
        self.b_iah = nn.Parameter(torch.empty(d))
        self.b_oah = nn.Parameter(torch.empty(d))
        self.linear_edge_in = nn.Linear(d, d)
        self.linear_edge_out = nn.Linear(d, d)
        # Never used, but part of the authors' weights.
        self.linear_edge_f = nn.Linear(d, d)

    def forward(self, matrices: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Takes connections [B, N, 2N] and states [B, N, D]; returns states."""
        incoming, outgoing = matrices.chunk(2, dim=2)
        for _ in range(self.step):
            a_in = torch.matmul(incoming, self.linear_edge_in(hidden)) + self.b_iah
            a_out = torch.matmul(outgoing, self.linear_edge_out(hidden)) + self.b_oah
            a = functional.linear(torch.cat([a_in, a_out], dim=2), self.w_ih, self.b_ih)
            h = functional.linear(hidden, self.w_hh, self.b_hh)
            (a_r, a_z, a_n), (h_r, h_z, h_n) = a.chunk(3, dim=2), h.chunk(3, dim=2)
            r, z = torch.sigmoid(a_r + h_r), torch.sigmoid(a_z + h_z)
            n = torch.tanh(a_n + r * h_n)
            hidden = n + z * (hidden - n)
        return hidden


class SessionGraph(nn.Module):
    """The model, with the parameter names of the authors' code."""

    def __init__(
        self, num_items: int, embedding_size: int, step: int = 1, hybrid: bool = True
    ):
        super().__init__()
        d, self.hybrid = embedding_size, hybrid
        self.embedding = nn.Embedding(num_items, d)
        self.gnn = GNN(d, step)
        self.linear_one = nn.Linear(d, d)
        self.linear_two = nn.Linear(d, d)
        self.linear_three = nn.Linear(d, 1, bias=False)
        self.linear_transform = nn.Linear(2 * d, d)
        bound = 1 / math.sqrt(d)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, inputs: np.ndarray) -> torch.Tensor:
        """Scores items 1 to V - 1 for sessions [B, L]; returns [B, V - 1]."""
        device = self.embedding.weight.device
        alias, items, matrices, mask = (
            torch.from_numpy(array).to(device)
            for array in (*session_graphs(inputs), inputs > 0)
        )
        states = self.gnn(matrices, self.embedding(items))
        hidden = torch.stack([states[i][alias[i]] for i in range(len(alias))])
        last = hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        query = self.linear_one(last)[:, None]
        alpha = self.linear_three(torch.sigmoid(query + self.linear_two(hidden)))
        session = torch.sum(alpha * hidden * mask[:, :, None].float(), 1)
        if self.hybrid:
            session = self.linear_transform(torch.cat([session, last], dim=1))
        return torch.matmul(session, self.embedding.weight[1:].transpose(1, 0))


def shuffled(
    num_examples: int, batch_size: int, steps: int, seed: int, epoch: int = 0
) -> Iterator[np.ndarray]:
    """Yields the example numbers of an epoch's first batches.

    Every epoch of every seed has its own order.
    """
    order = np.random.default_rng(1000 * seed + epoch).permutation(num_examples)
    for step in range(steps):
        yield order[step * batch_size : (step + 1) * batch_size]


def initial_model(num_items: int, embedding_size: int, seed: int) -> SessionGraph:
    """Draws the model's weights."""
    torch.manual_seed(seed)
    return SessionGraph(num_items, embedding_size)


def adam(model: SessionGraph) -> torch.optim.Adam:
    """Returns the optimizer."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=L2)


def train(
    model: SessionGraph,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Examples],
    window: int,
) -> Iterator[dict[str, float]]:
    """Takes a step on each batch; yields a record every `window` steps."""
    criterion = nn.CrossEntropyLoss()
    model.train()
    start, count, total = time.perf_counter(), 0, 0.0
    for step, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        scores = model(batch.inputs)
        targets = torch.from_numpy(batch.targets - 1).to(scores.device)
        loss = criterion(scores, targets)
        loss.backward()
        optimizer.step()
        total += loss.item()
        count += len(batch.targets)
        if step % window == 0:
            seconds = time.perf_counter() - start
            yield {
                "step": step,
                "train/loss": total / window,
                "train/examples_per_second": count / seconds,
            }
            start, count, total = time.perf_counter(), 0, 0.0


@torch.no_grad()
def evaluate(
    model: SessionGraph, examples: Examples, batch_size: int
) -> dict[str, float]:
    """Returns recall@20, mrr@20 and the examples evaluated per second."""
    model.eval()
    start = time.perf_counter()
    hits, reciprocal_ranks = [], []
    for first in range(0, len(examples.targets), batch_size):
        batch = slice(first, first + batch_size)
        best = model(examples.inputs[batch]).topk(TOP)[1].cpu().numpy()
        for items, target in zip(best, examples.targets[batch], strict=True):
            hits.append(np.isin(target - 1, items))
            place = np.where(items == target - 1)[0]
            reciprocal_ranks.append(1 / (place[0] + 1) if len(place) else 0.0)
    found = {
        f"test/recall@{TOP}": float(np.mean(hits)),
        f"test/mrr@{TOP}": float(np.mean(reciprocal_ranks)),
    }
    seconds = time.perf_counter() - start
    return {**found, "test/examples_per_second": len(hits) / seconds}


def parse(description: str) -> argparse.Namespace:
    """Parses the flags, which set how to train on `--data_dir`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=0, help="instead of --steps")
    parser.add_argument("--window", type=int, default=100, help="steps per record")
    parser.add_argument("--embedding_size", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def steps_of_an_epoch(arguments: argparse.Namespace, num_examples: int) -> int:
    """Returns how many steps of each epoch are taken."""
    whole = math.ceil(num_examples / arguments.batch_size)
    if arguments.epochs:
        return whole
    if arguments.steps > whole:
        sys.exit(
            f"error: --steps is {arguments.steps}, but an epoch of {num_examples:,} "
            f"examples has only {whole:,}"
        )
    return arguments.steps


def main():
    """Trains for some steps or epochs, evaluates, and prints the records."""
    arguments = parse(__doc__)
    # Second moments of items that are rarely a target become denormal numbers, which
    # make a CPU, but not a GPU, several times slower.
    torch.set_flush_denormal(True)
    training = expand(read_pickle(arguments.data_dir / "all_train_seq.txt"))
    test = pad(*read_pickle(arguments.data_dir / "test.txt"))
    largest = max(int(x.max()) for x in (*training, *test))
    model = initial_model(largest + 1, arguments.embedding_size, arguments.seed)
    optimizer = adam(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, DECAY_EPOCHS, DECAY)
    count = len(training.targets)
    steps = steps_of_an_epoch(arguments, count)
    for epoch in range(arguments.epochs or 1):
        batches = (
            Examples(training.inputs[chosen], training.targets[chosen])
            for chosen in shuffled(
                count, arguments.batch_size, steps, arguments.seed, epoch
            )
        )
        for record in train(model, optimizer, batches, arguments.window):
            record["step"] += epoch * steps
            print(json.dumps(record), flush=True)
        schedule.step()
        found = evaluate(model, test, arguments.batch_size)
        print(json.dumps({"step": (epoch + 1) * steps, **found}), flush=True)


if __name__ == "__main__":
    main()
