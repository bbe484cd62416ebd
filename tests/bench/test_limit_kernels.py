import threading
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.backends.cpu.kernel_cache import Target, host_target
from edgelm.bench.limit_kernels import (
    INSTRUCTIONS,
    OPERAND_BYTES,
    PLAIN,
    READ_STEP,
    Instruction,
    available,
    build_module,
    compile_loops,
)

HERE = (*available(host_target()), PLAIN)
ROWS = {row.name: row for row in INSTRUCTIONS}


def operands() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 16, OPERAND_BYTES).astype(np.uint8)


def expected_sums(row: Instruction, memory: NDArray[np.uint8], rounds: int) -> NDArray[np.int32]:
    """The sums after so many rounds, by numpy, as int32 [n_sums, n_bytes / 4]."""
    vectors = memory[: row.n_bytes * (row.n_codes + row.n_sums + 1)].reshape(-1, row.n_bytes)
    codes, x = vectors[: row.n_codes].astype(np.int64), vectors[-1].view(np.int8)
    sums = vectors[row.n_codes : -1].copy().view(np.int32).astype(np.int64)
    lanes = row.n_bytes // 4
    for _ in range(rounds):
        products = (codes * x).reshape(row.n_codes, lanes, 4)
        if row is PLAIN:
            sums += np.stack([(codes[k // 4] * x)[lanes * (k % 4) :][:lanes] for k in range(row.n_sums)])
        elif row.n_sums == 1:
            sums += products.sum(axis=(0, 2))
        else:
            sums += np.stack([products[k % row.n_codes].sum(axis=1) for k in range(row.n_sums)])
        if row is PLAIN or row.n_sums == 1:  # these change their activations
            x = (x.view(np.uint8) + codes[0].astype(np.uint8)).view(np.int8)
    return sums.astype(np.int32)


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
@pytest.mark.parametrize("rounds", [1, 5])
def test_the_multiplications_are_all_done(row: Instruction, rounds: int) -> None:
    loops = compile_loops([row])
    memory = operands()
    expected = expected_sums(row, memory, rounds)
    [(_, multiply)] = loops.multiply
    multiply(memory.ctypes.data, rounds)
    np.testing.assert_array_equal(memory[: expected.nbytes].view(np.int32), expected.ravel())


@pytest.mark.parametrize("row", [*INSTRUCTIONS, PLAIN], ids=lambda row: row.name)
def test_operands_fit_their_memory(row: Instruction) -> None:
    assert row.n_bytes * (row.n_codes + row.n_sums + 1) <= OPERAND_BYTES


def test_every_byte_is_read() -> None:
    memory = np.random.default_rng(0).integers(0, 2**62, 3 * READ_STEP // 8, np.int64)
    loops = compile_loops([PLAIN])
    assert loops.read(memory.ctypes.data, memory.nbytes) == np.bitwise_xor.reduce(memory)


@pytest.mark.parametrize(
    ("name", "triple", "cpu", "features", "counts"),
    [
        ("vpdpbusd, 512 bits", "x86_64-linux-gnu", "icelake-server", "", {"vpdpbusd\t%zmm": 12}),
        ("vpdpbusd, 256 bits", "x86_64-linux-gnu", "alderlake", "", {"vpdpbusd\t%ymm": 12}),
        ("vpmaddubsw, 512 bits", "x86_64-linux-gnu", "skylake-avx512", "", {"vpmaddubsw\t%zmm": 8, "vpmaddwd\t": 1}),
        ("vpmaddubsw, 256 bits", "x86_64-linux-gnu", "haswell", "", {"vpmaddubsw\t%ymm": 8, "vpmaddwd\t": 1}),
        ("pmaddubsw, 128 bits", "x86_64-linux-gnu", "goldmont", "", {"\tpmaddubsw\t": 8, "\tpmaddwd\t": 1}),
        ("smmla, 128 bits", "aarch64-linux-gnu", "neoverse-v1", "", {"smmla\t": 12}),
        ("sdot, 128 bits", "aarch64-linux-gnu", "cortex-a76", "", {"sdot\t": 12}),
        ("smlal, 128 bits", "aarch64-linux-gnu", "cortex-a72", "", {"smull": 8, "smlal": 8, "sadalp": 2}),
    ],
)
def test_other_processors_get_the_instruction(name: str, triple: str, cpu: str, features: str, counts: dict[str, int]) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = build_module([ROWS[name]])
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    text = machine.emit_assembly(llvm.parse_assembly(str(module)))
    loop = text[text.index("multiply0:") :]
    assert {part: loop.count(part) for part in counts} == counts


def with_features(features: str) -> Target:
    return Target("some", ",".join(f"+{name}" for name in features.split()), "generic")


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ("neon dotprod", ["sdot, 128 bits", "smlal, 128 bits"]),
        ("ssse3 avx2 avxvnni", ["vpdpbusd, 256 bits", "vpmaddubsw, 256 bits", "pmaddubsw, 128 bits"]),
        ("m a f d", [PLAIN.name]),
    ],
)
def test_only_instructions_of_the_processor_are_taken(features: str, names: list[str]) -> None:
    assert [row.name for row in available(with_features(features))] == names


def test_a_feature_that_is_switched_off_does_not_count() -> None:
    assert available(Target("some", "+ssse3,-avx2", "generic")) == (ROWS["pmaddubsw, 128 bits"],)


def test_calls_let_other_threads_run() -> None:
    """The interpreter's lock is released: another thread counts while a long loop runs."""
    loops = compile_loops([PLAIN])
    multiply: Callable[[int, int], int] = loops.multiply[0][1]
    memory = operands()
    done = threading.Event()
    seen: list[int] = []

    def count() -> None:
        while not done.is_set():
            seen.append(1)
            done.wait(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    multiply(memory.ctypes.data, 5_000_000)
    n = len(seen)
    done.set()
    thread.join()
    assert n > 1
