/* Watch: see module.h. */
#include "module.h"

#include <unistd.h>

#include "queue.h"
#include "waiting.h"

typedef struct {
    PyObject_HEAD
    struct watch watch;
    PyObject *attachments; /* while a thread sleeps: what it sleeps on. Here, not on its stack: see Watch_forget */
    pid_t sleeper;         /* the process of that thread */
} WatchObject;

static PyObject *Watch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"polls", NULL};
    int polls = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p", names, &polls))
        return NULL;
    WatchObject *self = PyObject_New(WatchObject, type);
    if (self == NULL)
        return NULL;
    self->watch = (struct watch){.polls = (uint32_t)polls};
    self->attachments = NULL;
    return (PyObject *)self;
}

static void Watch_dealloc(PyObject *self)
{
    Py_XDECREF(((WatchObject *)self)->attachments);
    object_free(self);
}

static PyObject *Watch_ring(PyObject *self, PyObject *unused)
{
    watch_ring(&((WatchObject *)self)->watch);
    Py_RETURN_NONE;
}

/* A forked child inherits the objects that another thread's stack refers to, but not the thread, so nobody would
 * release them. */
static PyObject *Watch_forget(PyObject *self, PyObject *unused)
{
    WatchObject *watch = (WatchObject *)self;
    if (watch->attachments != NULL && watch->sleeper != getpid())
        Py_CLEAR(watch->attachments);
    Py_RETURN_NONE;
}

/* Fill in what to wait for at one channel or queue: the low half of its present version, or number of events, unless
 * that is newer than `version`. */
static bool watched_fill(const struct core *core, struct watched *watched, PyObject *source, PyObject *version)
{
    unsigned long long seen = PyLong_AsUnsignedLongLong(version);
    if (PyErr_Occurred())
        return false;
    if (PyObject_TypeCheck(source, core->attachment_type)) {
        const struct channel *channel = &((AttachmentObject *)source)->attachment->channel;
        uint64_t latest = channel_latest(channel);
        *watched = (struct watched){
            .word = channel_low(channel),
            .sleepers = &channel->shared->sleepers,
            .seen = (uint32_t)latest,
            .ready = latest_version(latest) > seen,
        };
        return true;
    }
    struct queue_gate *gate = PyObject_TypeCheck(source, core->queue_gate_type) ? gate_of(source) : NULL;
    if (gate == NULL) {
        PyErr_SetString(PyExc_TypeError, "wait: expected a dict of {Attachment or QueueGate: version}");
        return false;
    }
    uint64_t events = shared_load_acquire(&gate->events);
    *watched = (struct watched){
        .word = (const shared_u32 *)&gate->events, /* the low half: both architectures are little-endian */
        .sleepers = &gate->sleepers,
        .seen = (uint32_t)events,
        .ready = events > seen,
    };
    return true;
}

static PyObject *watched_ready(PyObject *attachments, const struct watched *words, Py_ssize_t count)
{
    PyObject *ready = PyList_New(0);
    for (Py_ssize_t i = 0; ready != NULL && i < count; i++)
        if (words[i].ready && PyList_Append(ready, PyList_GetItem(attachments, i)) != 0)
            Py_CLEAR(ready);
    return ready;
}

static PyObject *watch_sleep_on(WatchObject *self, PyObject *versions, double timeout_s)
{
    Py_ssize_t count = PyList_Size(self->attachments);
    struct watched *words = PyMem_Calloc((size_t)count + 1, sizeof *words);
    PyObject *ready = NULL;
    bool filled = words != NULL;
    if (words == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; filled && i < count; i++) {
        PyObject *attachment = PyList_GetItem(self->attachments, i);
        filled = watched_fill(core_of((PyObject *)self), &words[i], attachment, PyDict_GetItem(versions, attachment));
    }
    if (filled) {
        enum futex_result result;
        Py_BEGIN_ALLOW_THREADS
        result = watch_sleep(&self->watch, words, (size_t)count, (int64_t)(timeout_s * 1e9));
        Py_END_ALLOW_THREADS
        if (result != FUTEX_INTERRUPTED || PyErr_CheckSignals() == 0)
            ready = watched_ready(self->attachments, words, count);
    }
    PyMem_Free(words);
    return ready;
}

static PyObject *Watch_wait(PyObject *self, PyObject *args)
{
    WatchObject *watch = (WatchObject *)self;
    PyObject *versions;
    double timeout_s;
    if (!PyArg_ParseTuple(args, "O!d", &PyDict_Type, &versions, &timeout_s))
        return NULL;
    if (watch->attachments != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "wait: another thread sleeps on this watch; ring() wakes it");
        return NULL;
    }
    watch->attachments = PyDict_Keys(versions);
    if (watch->attachments == NULL)
        return NULL;
    watch->sleeper = getpid();
    PyObject *ready = watch_sleep_on(watch, versions, timeout_s);
    Py_CLEAR(watch->attachments);
    return ready;
}

/* polls: whether it looks every few milliseconds, since there is no futex_waitv */
#define WATCH_FIELDS(FIELD) FIELD(Watch, polls, PyBool_FromLong, shared_load_relaxed(&self->watch.polls) != 0)
WATCH_FIELDS(CORE_GETTER)

static PyMethodDef Watch_methods[] = {
    {"wait", Watch_wait, METH_VARARGS,
     "wait($self, versions, timeout_s, /)\n--\n\n"
     "Wait until a channel of {attachment: version} has a newer version, or its waiters are woken; return "
     "those to look at."},
    {"ring", Watch_ring, METH_NOARGS,
     "ring($self, /)\n--\n\n"
     "Make wait() return, now or the next time. Any thread may call it."},
    {"forget", Watch_forget, METH_NOARGS,
     "forget($self, /)\n--\n\n"
     "In a forked child: drop what a thread of the parent sleeps on."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Watch_getset[] = {WATCH_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot Watch_slots[] = {
    {Py_tp_doc,
     "Watch(polls=False)\n--\n\nSleeps until one of several channels has a newer version, or ring() is called."},
    {Py_tp_new, Watch_new},
    {Py_tp_dealloc, Watch_dealloc},
    {Py_tp_methods, Watch_methods},
    {Py_tp_getset, Watch_getset},
    {0, NULL},
};
static PyType_Spec Watch_spec = {"untorn._core.Watch", sizeof(WatchObject), 0, Py_TPFLAGS_DEFAULT, Watch_slots};

static const struct core_constant waiting_constants[] = {CORE_CONSTANT(WATCH_WORDS), {NULL, 0}};

bool module_add_waiting(PyObject *module)
{
    return type_add(module, &Watch_spec, NULL) && constants_add(module, waiting_constants);
}
