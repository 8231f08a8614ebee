"""Makes tests/golden_distances.npz: features, and what other libraries say of them.

    python -m venv V
    V/bin/pip install torch==2.13.0 torch-fidelity==0.4.0 prdc==0.2 scikit-learn==1.9.1
    V/bin/python tests/make_golden_distances.py

Made once, with Python 3.11 and NumPy 2.4.6; the test reads the file alone.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from prdc import compute_prdc
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

# torch-fidelity imports it for networks that are not used here, and it wants a CUDA torch.
for module in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
    sys.modules[f"torchvision{module}"] = mock.MagicMock()

from torch_fidelity import metric_fid, metric_kid, metric_prc  # noqa: E402

K = 4


def frechet(a, b):
    stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    told = metric_fid.fid_statistics_to_metric(*stats, verbose=False)
    return told["frechet_inception_distance"]


def kernels(a, b, kernel, **options):
    tables = [kernel(x, y, **options) for x, y in ((a, a), (a, b), (b, b))]
    return metric_kid.mmd2(*tables)


def main():
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(8, 8))
    real = rng.normal(size=(60, 8)) @ mix
    fake = 0.8 * rng.normal(size=(60, 8)) @ mix + 0.5
    few = [rng.normal(size=(12, 16)), 2 * rng.normal(size=(12, 16)) + 1]
    sigma = np.sqrt(np.concatenate([real, fake]).var(axis=0).sum())
    poly = {
        f"kid_kernel_poly_{n}": v
        for n, v in (("degree", 3), ("gamma", None), ("coef0", 1))
    }
    precision_recall = metric_prc.prc_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        prc_neighborhood=K,
        prc_batch_size=7,
        save_cpu_ram=False,
        verbose=False,
    )
    # What c2st does once the halves are chosen: standardised, then tried on the others.
    fitted, tried = (
        np.concatenate([real[s], fake[s]]) for s in (slice(30), slice(30, 60))
    )
    label = np.arange(60) >= 30
    centre, scale = fitted.mean(axis=0), fitted.std(axis=0)
    x, y = ((v - centre) / scale for v in (fitted, tried))
    squares = [np.concatenate([v, v**2 - 1], axis=1) for v in (x, y)]
    logistic = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(
        squares[0], label
    )
    shares = np.linalg.eigvalsh(cosine_similarity(real) / len(real))
    values = {
        "frechet": frechet(real, fake),
        "frechet_few": frechet(*few),
        "kernel": kernels(real, fake, metric_kid.kernel_poly, **poly),
        "rbf_mmd": kernels(
            real, fake, metric_kid.kernel_rbf, kid_kernel_rbf_sigma=sigma
        ),
        "torch_fidelity_precision": precision_recall["precision"],
        "torch_fidelity_recall": precision_recall["recall"],
        "neighbours": KNeighborsClassifier(15).fit(x, label).predict(y),
        "logistic": logistic.predict(squares[1]),
        "vendi": np.exp(entropy(np.clip(shares, 0, None))),
    }
    values |= compute_prdc(real, fake, nearest_k=K)
    path = Path(__file__).with_name("golden_distances.npz")
    np.savez_compressed(
        path, real=real, fake=fake, few_real=few[0], few_fake=few[1], **values
    )
    for name, value in values.items():
        print(name, value)


if __name__ == "__main__":
    main()
