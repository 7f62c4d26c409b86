/* Optimizer steps of one process's own arrays, without a board: see module.h. */
#include "module.h"

#include <string.h>

#include "kernels.h"

enum { STEP_ARRAYS = 3 + 2 * KERNEL_MAX_STATES };

/* The buffers of one step: parameters, gradient, state, then the new parameters and the new state. */
struct step_buffers {
    Py_buffer views[STEP_ARRAYS];
    int count;
};

static void buffers_release(struct step_buffers *buffers)
{
    while (buffers->count > 0)
        PyBuffer_Release(&buffers->views[--buffers->count]);
}

static bool buffer_take(struct step_buffers *buffers, PyObject *array, bool writable)
{
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (buffers->count == STEP_ARRAYS) {
        PyErr_SetString(PyExc_ValueError, "step_arrays: too many arrays of state");
        return false;
    }
    Py_buffer *view = &buffers->views[buffers->count];
    if (PyObject_GetBuffer(array, view, flags) != 0)
        return false;
    buffers->count++;
    const Py_buffer *first = &buffers->views[0];
    if (view->len == first->len && view->format != NULL && first->format != NULL &&
        strcmp(view->format, first->format) == 0)
        return true;
    PyErr_SetString(PyExc_ValueError, "step_arrays: expected arrays of one type and one size");
    return false;
}

static bool buffers_take(struct step_buffers *buffers, PyObject *arrays, bool writable)
{
    const Py_ssize_t count = PyTuple_Size(arrays);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!buffer_take(buffers, PyTuple_GetItem(arrays, i), writable))
            return false;
    return count >= 0;
}

static PyObject *core_step_arrays(PyObject *module, PyObject *args)
{
    PyObject *inputs, *outputs, *kernel;
    struct step_buffers buffers = {.count = 0};
    struct kernel_hyper hyper = {0};
    unsigned optimizer;
    if (!PyArg_ParseTuple(args, "O!(ddddd)O!O!", &PyTuple_Type, &kernel, &hyper.rates.lr, &hyper.rates.shrink,
                          &hyper.rates.root_scale, &hyper.rates.rate, &hyper.rates.step, &PyTuple_Type, &inputs,
                          &PyTuple_Type, &outputs) ||
        !PyArg_ParseTuple(kernel, "IdddddIII", &optimizer, &hyper.momentum, &hyper.weight_decay, &hyper.beta1,
                          &hyper.beta2, &hyper.eps, &hyper.nesterov, &hyper.centered, &hyper.amsgrad))
        return NULL;
    if (optimizer >= KERNEL_OPTIMIZERS)
        return PyErr_Format(PyExc_ValueError, "optimizer %u: expected one below %d", optimizer, KERNEL_OPTIMIZERS);
    const unsigned states = kernel_state_count((enum kernel_optimizer)optimizer, &hyper);
    if (PyTuple_Size(inputs) != 2 + (Py_ssize_t)states || PyTuple_Size(outputs) != 1 + (Py_ssize_t)states)
        return PyErr_Format(PyExc_ValueError, "step_arrays: expected %u arrays of state", states);
    PyObject *result = NULL;
    if (buffers_take(&buffers, inputs, false) && buffers_take(&buffers, outputs, true)) {
        const Py_buffer *views = buffers.views;
        const bool is_double = strcmp(views[0].format, "d") == 0;
        if (is_double || strcmp(views[0].format, "f") == 0) {
            const enum kernel_dtype dtype = is_double ? KERNEL_F64 : KERNEL_F32;
            const void *gradient = views[1].buf, *state_in[KERNEL_MAX_STATES] = {NULL};
            void *state_out[KERNEL_MAX_STATES] = {NULL};
            const double weight = 1;
            for (unsigned k = 0; k < states; k++) {
                state_in[k] = views[2 + k].buf;
                state_out[k] = views[3 + states + k].buf;
            }
            const struct kernel_range range = {
                .count = (uint64_t)views[0].len / kernel_itemsize(dtype),
                .shards = 1,
                .grads = &gradient,
                .weights = &weight,
                .grad_scale = 1,
                .params_in = views[0].buf,
                .params_out = views[2 + states].buf,
                .state_in = state_in,
                .state_out = state_out,
            };
            Py_BEGIN_ALLOW_THREADS
            kernel_step((enum kernel_optimizer)optimizer, dtype, &hyper, &range);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        } else {
            PyErr_SetString(PyExc_ValueError, "step_arrays: expected float32 or float64");
        }
    }
    buffers_release(&buffers);
    return result;
}

static PyMethodDef step_functions[] = {
    {"step_arrays", core_step_arrays, METH_VARARGS,
     "step_arrays($module, kernel, rates, inputs, outputs, /)\n--\n\n"
     "Make one step of an optimizer. The inputs are parameters, gradient and state, the outputs the new parameters and "
     "the new state: C-contiguous arrays of one type and size, which do not overlap."},
    {NULL, NULL, 0, NULL},
};

bool module_add_step(PyObject *module) { return PyModule_AddFunctions(module, step_functions) == 0; }
