/* Forking a sibling with an interpreter in it, and ending with another process: see module.h. */
#include "module.h"

#include <errno.h>

#include "lifeline.h"
#include "sibling.h"

static PyObject *core_fork_sibling(PyObject *module, PyObject *argument)
{
    Py_buffer word;
    if (PyObject_GetBuffer(argument, &word, PyBUF_WRITABLE) != 0)
        return NULL;
    if (word.len < (Py_ssize_t)sizeof(pid_t) || (uintptr_t)word.buf % sizeof(pid_t) != 0) {
        PyBuffer_Release(&word);
        PyErr_Format(PyExc_ValueError, "fork_sibling: expected %zu aligned bytes", sizeof(pid_t));
        return NULL;
    }
    PyOS_BeforeFork();
    const pid_t pid = sibling_fork(word.buf);
    const int cause = errno;
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    PyBuffer_Release(&word);
    errno = cause;
    return pid < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(pid);
}

static PyObject *core_follow_lifeline(PyObject *module, PyObject *args)
{
    int fd;
    unsigned grace_s;
    if (!PyArg_ParseTuple(args, "iI", &fd, &grace_s))
        return NULL;
    if (lifeline_follow(fd, grace_s) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef sibling_functions[] = {
    {"fork_sibling", core_fork_sibling, METH_O,
     "fork_sibling($module, word, /)\n--\n\n"
     "Fork as os.fork() does, but as a child of this process's parent. The kernel writes the id of the copy to the "
     "first four bytes of the word before the copy runs. This process must have one thread only."},
    {"follow_lifeline", core_follow_lifeline, METH_VARARGS,
     "follow_lifeline($module, fd, grace_s, /)\n--\n\n"
     "End this process when nobody has had this pipe open for writing for a number of seconds. See lifeline.h."},
    {NULL, NULL, 0, NULL},
};

bool module_add_sibling(PyObject *module) { return PyModule_AddFunctions(module, sibling_functions) == 0; }
