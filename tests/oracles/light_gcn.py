"""LightGCN on its own: one sparse matrix over all nodes, gradients by hand through it, a loop that trains.

Nothing of ours is used. Users come first, then items. The recipe is that of `jobs/ml1m/light_gcn.yaml`: users in random
order, some of the items of each with replacement, negatives that all users of a step share, a softmax of each positive
among the negatives, and Adagrad with one learning rate a row.

Source: He et al., 2020, equations 3, 4 and 8.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F


def adjacency(user_E, item_E, users, items):
    """``D^-1/2 A D^-1/2``, (N, N), sparse."""
    row, column = np.concatenate([user_E, users + item_E]), np.concatenate([users + item_E, user_E])
    degree = np.bincount(row, minlength=users + items)
    weight = torch.from_numpy((degree[row] * degree[column]) ** -0.5).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse rows are announced as new
        size = (users + items, users + items)
        return torch.sparse_coo_tensor(np.stack([row, column]), weight, size).coalesce().to_sparse_csr()


def convolved(matrix, first_ND, layers):
    """The mean of ``E, A E, ..., A^L E``: linear, and symmetric as A is, so that it takes gradients back as well."""
    total, layer = first_ND.clone(), first_ND
    for _ in range(layers):
        layer = matrix @ layer
        total += layer
    return total / (layers + 1)


def softmax_loss(score_AM, is_taken_AM):
    """Each taken candidate against those that are not taken: the mean over an anchor's, then over anchors."""
    others_A1 = score_AM.masked_fill(is_taken_AM, -torch.inf).logsumexp(1, keepdim=True)
    return ((F.softplus(others_A1 - score_AM) * is_taken_AM).sum(1) / is_taken_AM.sum(1)).mean()


def gradient(matrix, first_ND, layers, loss):
    """A loss of the convolved vectors, and its gradient with respect to the first ones, (N, D)."""
    vector_ND = convolved(matrix, first_ND, layers).requires_grad_()
    value = loss(vector_ND)
    value.backward()
    return float(value.detach()), convolved(matrix, vector_ND.grad, layers)


def train(user_E, item_E, users, items, *, layers, width, std, lr, steps, batch, positives, negatives, seed):
    """The convolved vectors of all nodes after so many steps, (N, D)."""
    rng, matrix = np.random.default_rng(seed), adjacency(user_E, item_E, users, items)
    taken = np.zeros((users, items), bool)
    taken[user_E, item_E] = True
    lists = [np.flatnonzero(row) for row in taken]
    first_ND = torch.from_numpy(rng.normal(0, std, (users + items, width))).float()
    squares_N, order = torch.zeros(users + items), []
    for _ in range(steps):
        if not order:
            shuffled = rng.permutation([u for u in range(users) if len(lists[u])])
            order = [shuffled[i : i + batch] for i in range(0, len(shuffled), batch)]
        user_A = order.pop(0)
        own_AM, shared_M = (
            np.stack([rng.choice(lists[u], positives) for u in user_A]),
            rng.integers(0, items, negatives),
        )
        is_taken_AM = torch.from_numpy(np.hstack([np.ones_like(own_AM, bool), taken[user_A][:, shared_M]]))

        def loss(vector_ND, user_A=user_A, own_AM=own_AM, shared_M=shared_M, is_taken_AM=is_taken_AM):
            user_AD, item_ID = vector_ND[user_A], vector_ND[users:]
            own = torch.einsum("ad,amd->am", user_AD, item_ID[own_AM])
            return softmax_loss(torch.cat([own, user_AD @ item_ID[shared_M].T], 1), is_taken_AM)

        _, gradient_ND = gradient(matrix, first_ND, layers, loss)
        squares_N += gradient_ND.square().mean(1)
        first_ND -= lr * gradient_ND / (squares_N.sqrt() + 1e-8).unsqueeze(1)
    return convolved(matrix, first_ND, layers)


def recall(vector_ND, users, known, relevant, at):
    """The mean share of a user's relevant items among the first; known ones are left out. Both are lists of sets."""
    score_UI, found = (vector_ND[:users] @ vector_ND[users:].T).numpy(), []
    for user in (u for u in range(users) if relevant[u]):
        score_UI[user, sorted(known[user])] = -np.inf
        best = np.argpartition(-score_UI[user], at)[:at]
        found.append(len(relevant[user] & set(best.tolist())) / len(relevant[user]))
    return float(np.mean(found))
