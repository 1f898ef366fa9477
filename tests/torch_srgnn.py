"""SR-GNN in PyTorch, a reference for tests, written from the paper's equations.

It can follow either of the two public PyTorch codes. `source="recbole"` has RecBole's
parameter names, its update gate (the paper's) and its softmax, which includes row 0.
`source="original"` has the original repository's names, its inverted gate and its
scores without row 0.

Axes: B batch, L positions, D embedding, V item rows (row 0 is the padding item).
"""

import itertools
import math

import numpy as np
import torch
from torch import nn

# The models are tiny, so threads would only wait for each other.
torch.set_num_threads(1)

# Cases for `record`. Together they cover both codes, steps 1 to 4, both readouts and
# both losses.
CASES = (
    {"source": "recbole", "step": 1, "hybrid": True, "loss_type": "CE"},
    {"source": "recbole", "step": 3, "hybrid": True, "loss_type": "BPR"},
    {"source": "original", "step": 2, "hybrid": True, "loss_type": "CE"},
    {"source": "original", "step": 4, "hybrid": False, "loss_type": "CE"},
    {"source": "original", "step": 1, "hybrid": False, "loss_type": "BPR"},
)


def connection_matrices(
    item_seq: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Builds nodes [B, L], alias [B, L], A_in and A_out [B, L, L] from sets of edges.

    Nodes are the distinct items in ascending order, as in both PyTorch codes. The order
    in `srgnn_jax.model.graph` differs.
    """
    batch, length = item_seq.shape
    nodes = np.zeros((batch, length), np.int64)
    alias = np.zeros((batch, length), np.int64)
    incoming = np.zeros((batch, length, length))
    outgoing = np.zeros((batch, length, length))
    for b, row in enumerate(item_seq.tolist()):
        clicks = [item for item in row if item > 0]
        distinct = sorted(set(clicks))
        node = {item: n for n, item in enumerate(distinct)}
        nodes[b, : len(distinct)] = distinct
        alias[b, : len(clicks)] = [node[item] for item in clicks]
        edges = set(itertools.pairwise(clicks))
        for u, v in edges:
            outgoing[b, node[u], node[v]] = 1 / sum(w == u for w, _ in edges)
            incoming[b, node[v], node[u]] = 1 / sum(w == v for _, w in edges)
    return nodes, alias, incoming, outgoing


class GatedGraph(nn.Module):
    """Equations 1 to 5: the gated graph network, `step` times."""

    def __init__(self, d: int, step: int, source: str):
        super().__init__()
        self.step, self.source = step, source
        self.linear_edge_in = nn.Linear(d, d)
        self.linear_edge_out = nn.Linear(d, d)
        if source == "original":
            self.linear_edge_f = nn.Linear(d, d)
        self.b_iah = nn.Parameter(torch.empty(d))
        self.bias_out = "b_ioh" if source == "recbole" else "b_oah"
        self.register_parameter(self.bias_out, nn.Parameter(torch.empty(d)))
        self.w_ih = nn.Parameter(torch.empty(3 * d, 2 * d))
        self.w_hh = nn.Parameter(torch.empty(3 * d, d))
        self.b_ih = nn.Parameter(torch.empty(3 * d))
        self.b_hh = nn.Parameter(torch.empty(3 * d))

    def forward(self, incoming, outgoing, hidden):
        for _ in range(self.step):
            a_in = incoming @ self.linear_edge_in(hidden) + self.b_iah
            a_out = outgoing @ self.linear_edge_out(hidden) + getattr(
                self, self.bias_out
            )
            a = torch.cat([a_in, a_out], dim=-1) @ self.w_ih.T + self.b_ih
            h = hidden @ self.w_hh.T + self.b_hh
            (a_r, a_z, a_n), (h_r, h_z, h_n) = a.chunk(3, -1), h.chunk(3, -1)
            r, z = torch.sigmoid(a_r + h_r), torch.sigmoid(a_z + h_z)
            n = torch.tanh(a_n + r * h_n)
            keeps = 1 - z if self.source == "recbole" else z
            hidden = keeps * hidden + (1 - keeps) * n
        return hidden


class TorchSRGNN(nn.Module):
    """The model; `item_seq` [B, L] and `item_seq_len` [B] are int64 tensors."""

    def __init__(
        self, num_items: int, d: int, step: int, hybrid: bool, source: str, seed: int
    ):
        super().__init__()
        self.hybrid, self.source = hybrid, source
        self.table = "item_embedding" if source == "recbole" else "embedding"
        self.add_module(self.table, nn.Embedding(num_items, d))
        self.gnn = GatedGraph(d, step, source)
        self.linear_one = nn.Linear(d, d)
        self.linear_two = nn.Linear(d, d)
        self.linear_three = nn.Linear(d, 1, bias=False)
        self.linear_transform = nn.Linear(2 * d, d)
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(d)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @property
    def item_table(self) -> torch.Tensor:
        return getattr(self, self.table).weight

    def hidden_states(self, item_seq):
        """Returns the state at every position [B, L, D]."""
        nodes, alias, incoming, outgoing = connection_matrices(item_seq.numpy())
        dtype = self.item_table.dtype
        hidden = self.gnn(
            torch.from_numpy(incoming).to(dtype),
            torch.from_numpy(outgoing).to(dtype),
            self.item_table[torch.from_numpy(nodes)],
        )
        return torch.stack([h[a] for h, a in zip(hidden, alias, strict=True)])

    def forward(self, item_seq, item_seq_len):
        """Equations 6 and 7: the session embeddings [B, D]."""
        hidden = self.hidden_states(item_seq)
        s_last = hidden[torch.arange(len(hidden)), item_seq_len - 1]
        alpha = self.linear_three(
            torch.sigmoid(self.linear_one(s_last)[:, None] + self.linear_two(hidden))
        )
        s_global = (alpha * hidden * (item_seq > 0)[:, :, None]).sum(1)
        if not self.hybrid:
            return s_global
        return self.linear_transform(torch.cat([s_global, s_last], dim=-1))

    def full_sort_predict(self, item_seq, item_seq_len):
        """Returns the scores [B, V]."""
        return self(item_seq, item_seq_len) @ self.item_table.T

    def predict(self, item_seq, item_seq_len, item):
        """Returns the scores of one item per session [B]."""
        return (self(item_seq, item_seq_len) * self.item_table[item]).sum(-1)

    def calculate_loss(self, item_seq, item_seq_len, target, negative=None):
        """Returns the mean cross entropy, or the mean BPR if there are negatives."""
        if negative is None:
            scores = self.full_sort_predict(item_seq, item_seq_len)
            first = 0 if self.source == "recbole" else 1
            log_share = torch.log_softmax(scores[:, first:], dim=-1)
            return -log_share[torch.arange(len(target)), target - first].mean()
        better = self.predict(item_seq, item_seq_len, target)
        worse = self.predict(item_seq, item_seq_len, negative)
        return -torch.log(1e-10 + torch.sigmoid(better - worse)).mean()


def random_sessions(
    rng: np.random.Generator, shape: tuple[int, int, int], num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws item_seq [T, B, L] and item_seq_len [T, B], with many repeat clicks.

    The first batch starts with edge cases: a single click, a full-length session, one
    item clicked repeatedly, and two items clicked in alternation.
    """
    length = shape[-1]
    item_seq = rng.integers(1, num_items, shape)
    # A third of the sessions stay among few items, so that they repeat and loop.
    few = rng.integers(1, 4, shape)
    item_seq = np.where(rng.random(shape[:2])[:, :, None] < 1 / 3, few, item_seq)
    item_seq_len = rng.integers(1, length + 1, shape[:2])
    item_seq_len[0, :4] = 1, length, length - 1, length
    item_seq[0, 2:4] = 5
    item_seq[0, 3, ::2] = 2
    item_seq *= np.arange(length) < item_seq_len[:, :, None]
    return item_seq, item_seq_len


def record(
    *,
    source: str,
    step: int,
    hybrid: bool,
    loss_type: str,
    dtype: torch.dtype,
    seed: int,
    num_steps: int = 50,
) -> dict[str, np.ndarray]:
    """Trains a model of random size; returns a recording for `parity.differences`.

    The learning rate is halved twice within the 50 steps of Adam.
    """
    rng = np.random.default_rng(seed)
    num_items, d = int(rng.integers(20, 60)), int(rng.integers(3, 24))
    batch, length = int(rng.integers(5, 12)), int(rng.integers(5, 12))
    lr, l2, lr_decay, lr_decay_epochs, steps_per_epoch = 1e-3, 1e-3, 0.5, 3, 7
    item_seq, item_seq_len = random_sessions(rng, (num_steps, batch, length), num_items)
    inputs = {
        "item_seq": item_seq,
        "item_seq_len": item_seq_len,
        "target": rng.integers(1, num_items, (num_steps, batch)),
    }
    if loss_type == "BPR":
        inputs["negative"] = rng.integers(1, num_items, (num_steps, batch))
    model = TorchSRGNN(num_items, d, step, hybrid, source, seed).to(dtype)

    def arrays(prefix: str, of=lambda parameter: parameter) -> dict[str, np.ndarray]:
        return {
            f"{prefix}/{name}": of(parameter).detach().numpy().copy()
            for name, parameter in model.named_parameters()
        }

    recording = arrays("param")
    recording |= {
        f"in/{name}": values.astype(np.int32) for name, values in inputs.items()
    }
    batches = [
        {name: torch.from_numpy(values[t]) for name, values in inputs.items()}
        for t in range(num_steps)
    ]
    sessions = batches[0]["item_seq"], batches[0]["item_seq_len"]
    nodes, alias, incoming, outgoing = connection_matrices(item_seq[0])
    loss = model.calculate_loss(**batches[0])
    loss.backward()
    recording |= arrays(
        "grad", lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    )
    out = {
        "A": np.concatenate([incoming, outgoing], axis=-1).astype(np.float32),
        "items": nodes,
        "alias": alias,
        "loss": loss,
        "seq_hidden": model.hidden_states(sessions[0]),
        "seq_output": model(*sessions),
        "full_sort_predict": model.full_sort_predict(*sessions),
        "predict": model.predict(*sessions, batches[0]["target"]),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=l2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, lr_decay_epochs, lr_decay)
    losses = []
    for t, batch_of_t in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss = model.calculate_loss(**batch_of_t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if t % steps_per_epoch == 0:
            schedule.step()
    cfg = {
        "num_items": num_items,
        "embedding_dim": d,
        "num_steps": step,
        "nonhybrid": int(not hybrid),
        "bpr": int(loss_type == "BPR"),
        "lr": lr,
        "l2": l2,
        "lr_decay": lr_decay,
        "lr_decay_epochs": lr_decay_epochs,
        "steps_per_epoch": steps_per_epoch,
    }
    return {
        **recording,
        **{
            f"out/{name}": np.asarray(torch.as_tensor(v).detach())
            for name, v in out.items()
        },
        **arrays("after"),
        "traj/loss": np.array(losses),
        **{f"cfg/{name}": np.asarray(value) for name, value in cfg.items()},
    }
