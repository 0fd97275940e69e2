"""The rows of the table: each measures genbound and its peer on the same problem in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

import genbound
from benchmarks import memory as peak
from benchmarks import models, peers
from benchmarks.clock import forward, gradient, seconds, typical
from benchmarks.rows.agreement import minilm_agreement, minilm_compiled, minilm_precision
from benchmarks.rows.allocation import small_allocation
from benchmarks.rows.hessian_trace import (
    exact_trace,
    fitted_trace,
    minilm_trace,
    minilm_trace_128,
    minilm_trace_1024,
    minilm_trace_2048,
)
from benchmarks.rows.max_quadratic_form import exact_quadratic_form, minilm_quadratic_form
from benchmarks.rows.noise_stability import minilm_draw, minilm_noise, minilm_noise_1024
from benchmarks.rows.peer_products import minilm_products
from benchmarks.rows.population_noise import minilm_population_noise
from benchmarks.rows.population_trace import minilm_population
from benchmarks.rows.row import ERROR, Row, known_to, ours_to_error, row
from benchmarks.rows.whole_run import large_outputs, memory, minilm_evaluate

ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "resnet20_trace": exact_trace("resnet20"),
    "efficientnet_trace": exact_trace("efficientnet_lite0"),
    "resnet20_quadratic_form": exact_quadratic_form("resnet20"),
    "efficientnet_quadratic_form": exact_quadratic_form("efficientnet_lite0"),
    "minilm_noise": minilm_noise,
    "minilm_noise_1024": minilm_noise_1024,
    "minilm_draw": minilm_draw,
    "minilm_trace_128": minilm_trace_128,
    "minilm_trace": minilm_trace,
    "minilm_trace_1024": minilm_trace_1024,
    "minilm_trace_2048": minilm_trace_2048,
    "minilm_population": minilm_population,
    "minilm_products": minilm_products,
    "small_allocation": small_allocation,
    "minilm_population_noise": minilm_population_noise,
    "fitted_trace": fitted_trace,
    "minilm_quadratic_form": minilm_quadratic_form,
    "minilm_first": minilm_evaluate("first bound, hessian_distance over all samples"),
    "minilm_quick": minilm_evaluate("--effort quick"),
    "minilm_evaluate": minilm_evaluate("every default row, --error 0.1"),
    "memory": memory,
    "memory_1000_classes": large_outputs("1000 classes"),
    "memory_30522_classes": large_outputs("30522 classes"),
    "memory_30522_words": large_outputs("30522 words at each of 32 positions"),
    "minilm_agreement": minilm_agreement,
    "minilm_precision": minilm_precision,
    "minilm_compiled": minilm_compiled,
}
