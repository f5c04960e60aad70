/* Float32 kernels of diffusers_lasers for the CPU: greedy pursuits, gradients and updates around them, and codewords.
 *
 * Python passes addresses of contiguous tensors, which functional/kernels/operators.py has checked. The interpreter's
 * lock is released. The best instruction set of the machine is chosen at run time.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#endif

#define GRAM_ROWS 64

#include "parallel.h"
#include "pursuit.h"

#define FUNCTION TARGET static inline __attribute__((always_inline))
#define TASK TARGET static __attribute__((noinline, unused))

#if X86
#define SUFFIX _avx512
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#define W 16
#define ISA_AVX512 1
#include "instruction_set.h"

#define SUFFIX _avx2
#define TARGET __attribute__((target("avx2,fma")))
#define W 8
#define ISA_AVX2 1
#include "instruction_set.h"
#endif

#define SUFFIX _generic
#define TARGET
#define W 4
#include "instruction_set.h"

static const implementation *chosen;

static void choose(int level)
{
    chosen = &implementation_generic;
#if X86
    __builtin_cpu_init();
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) chosen = &implementation_avx2;
    if (level >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        chosen = &implementation_avx512;
#endif
}

static void *at(unsigned long long address) { return (void *)(uintptr_t)address; }

/* A last check of sizes. functional/operands.py has checked the tensors themselves. */
#define LARGEST 2147483391 /* atoms and codewords are counted in 32 bits, with room for padding */

static int within(long size) { return size >= 1 && size <= LARGEST; }

static PyObject *refuse(void)
{
    PyErr_SetString(PyExc_ValueError, "A size handed to the compiled kernels is out of range.");
    return NULL;
}

static PyObject *finish(int failed)
{
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* pursue(signals, atoms, packed, scale, gram or 0, indices, coefficients, n, features, count, panels, sparsity,
 * tolerance, orthogonal, gram_form, threads) */
static PyObject *pursue(PyObject *self, PyObject *args)
{
    unsigned long long signals, atoms, packed, scale, gram, indices, coefficients;
    pursuit p;
    int threads, failed;
    (void)self;
    if (!PyArg_ParseTuple(
            args, "KKKKKKKlllllfiii", &signals, &atoms, &packed, &scale, &gram, &indices, &coefficients, &p.n,
            &p.features, &p.count, &p.panels, &p.sparsity, &p.tolerance, &p.orthogonal, &p.gram_form, &threads))
        return NULL;
    if (p.n < 0 || !within(p.features) || !within(p.count) || !within(p.sparsity)) return refuse();
    if (p.panels < 1 || p.panels > (p.count + 255) / PANEL) return refuse();
    p.signals = at(signals), p.atoms = at(atoms), p.packed = at(packed), p.scale = at(scale), p.gram = at(gram);
    p.indices = at(indices), p.coefficients = at(coefficients);
    Py_BEGIN_ALLOW_THREADS;
    failed = chosen->pursue(&p, threads);
    Py_END_ALLOW_THREADS;
    return finish(failed);
}

/* synthesis_gradients(gradient, indices, coefficients, atoms, to_atoms or 0, to_coefficients or 0, n, features, count,
 * sparsity, threads) */
static PyObject *synthesis_gradients(PyObject *self, PyObject *args)
{
    unsigned long long gradient, indices, coefficients, atoms, to_atoms, to_coefficients;
    synthesis p;
    int threads, failed;
    (void)self;
    if (!PyArg_ParseTuple(
            args, "KKKKKKlllli", &gradient, &indices, &coefficients, &atoms, &to_atoms, &to_coefficients, &p.n,
            &p.features, &p.count, &p.sparsity, &threads))
        return NULL;
    if (p.n < 0 || p.sparsity < 0 || !within(p.features) || !within(p.count)) return refuse();
    p.gradient = at(gradient), p.indices = at(indices), p.coefficients = at(coefficients), p.atoms = at(atoms);
    p.to_atoms = at(to_atoms), p.to_coefficients = at(to_coefficients);
    Py_BEGIN_ALLOW_THREADS;
    failed = chosen->synthesis_gradients(&p, threads);
    Py_END_ALLOW_THREADS;
    return finish(failed);
}

/* nearest(signals, packed, offsets, indices, n, stride, slots, features, panels, threads) */
static PyObject *nearest_codewords(PyObject *self, PyObject *args)
{
    unsigned long long signals, packed, offsets, indices;
    nearest p;
    int threads, failed;
    (void)self;
    if (!PyArg_ParseTuple(
            args, "KKKKllllli", &signals, &packed, &offsets, &indices, &p.n, &p.stride, &p.slots, &p.features,
            &p.panels, &threads))
        return NULL;
    if (p.n < 0 || !within(p.slots) || !within(p.features) || p.stride < p.slots * p.features) return refuse();
    if (p.panels < 1 || p.panels > LARGEST / PANEL) return refuse();
    p.signals = at(signals), p.packed = at(packed), p.offsets = at(offsets), p.indices = at(indices);
    Py_BEGIN_ALLOW_THREADS;
    failed = chosen->nearest(&p, threads);
    Py_END_ALLOW_THREADS;
    return finish(failed);
}

/* codewords(channels, indices, signals, number, n, stride, width, threads) -> whether all indices are in range.
 * `channels` has `number` rows of int64: (address of the codebooks, slots, codewords, features). */
static PyObject *decode_codewords(PyObject *self, PyObject *args)
{
    unsigned long long rows, indices, signals;
    atomic_int outside = 0;
    codewords p = {.outside = &outside};
    int threads, failed;
    (void)self;
    if (!PyArg_ParseTuple(
            args, "KKKlllli", &rows, &indices, &signals, &p.number, &p.n, &p.stride, &p.width, &threads))
        return NULL;
    if (p.n < 0 || !within(p.number) || !within(p.stride) || !within(p.width)) return refuse();
    channel *channels = malloc(p.number * sizeof(channel));
    if (!channels) return PyErr_NoMemory();
    for (long i = 0; i < p.number; i++) {
        const int64_t *row = (const int64_t *)at(rows) + 4 * i;
        channels[i] = (channel){at((unsigned long long)row[0]), row[1], row[2], row[3]};
    }
    p.channels = channels, p.indices = at(indices), p.signals = at(signals);
    Py_BEGIN_ALLOW_THREADS;
    failed = chosen->codewords(&p, threads);
    Py_END_ALLOW_THREADS;
    free(channels);
    if (failed) return PyErr_NoMemory();
    return PyBool_FromLong(!atomic_load(&outside));
}

/* block_update(rows, residual, coupling, inverse, b, features, stride) */
static PyObject *block_update(PyObject *self, PyObject *args)
{
    unsigned long long rows, residual, coupling, inverse;
    long b, features, stride;
    int failed;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKKKlll", &rows, &residual, &coupling, &inverse, &b, &features, &stride)) return NULL;
    if (!within(b) || !within(features) || stride < 0) return refuse();
    Py_BEGIN_ALLOW_THREADS;
    failed = chosen->block_update(at(rows), at(residual), at(coupling), at(inverse), b, features, stride);
    Py_END_ALLOW_THREADS;
    return finish(failed);
}

/* use_team(address of GOMP_parallel, or 0: each call then starts its own threads) */
static PyObject *use_team(PyObject *self, PyObject *args)
{
    unsigned long long address;
    (void)self;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    team = (team_entry)(uintptr_t)address;
    team_process = getpid();
    Py_RETURN_NONE;
}

/* instruction_set(level or −1) -> name of the set in use. Levels are 2 for AVX-512, 1 for AVX2 and 0 for neither. The
 * best set of the machine up to the level is chosen, and −1 changes nothing. For tests. */
static PyObject *instruction_set(PyObject *self, PyObject *args)
{
    int level;
    (void)self;
    if (!PyArg_ParseTuple(args, "i", &level)) return NULL;
    if (level >= 0) choose(level);
    return PyUnicode_FromString(chosen->name);
}

static PyMethodDef methods[] = {
    {"pursue", pursue, METH_VARARGS, "Greedy pursuits, see functional/kernels/operators.py."},
    {"synthesis_gradients", synthesis_gradients, METH_VARARGS,
     "Gradients of synthesis, see functional/kernels/operators.py."},
    {"nearest", nearest_codewords, METH_VARARGS, "Nearest codewords, see functional/kernels/operators.py."},
    {"codewords", decode_codewords, METH_VARARGS, "Signals from codewords, see functional/kernels/operators.py."},
    {"block_update", block_update, METH_VARARGS,
     "Block-coordinate descent, see functional/dictionary/online_learning.py."},
    {"use_team", use_team, METH_VARARGS, "Address of the entry of the OpenMP library whose threads are used, or 0."},
    {"instruction_set", instruction_set, METH_VARARGS,
     "Name of the instruction set in use. A level of 0 to 2 limits it."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Compiled kernels of diffusers_lasers.", -1, methods};

PyMODINIT_FUNC PyInit__kernels(void)
{
    choose(2);
    PyObject *module = PyModule_Create(&definition);
#ifdef Py_GIL_DISABLED /* after import, only `instruction_set` writes shared variables, and only tests call it */
    if (module) PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
}
