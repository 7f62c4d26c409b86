/* QueueItem and QueuePrivate, and how a Queue takes: see module.h. */
#include "module_queue.h"

#include <string.h>
#include <sys/mman.h>

#include "slots.h"
#include "tree_plan.h"

typedef struct {
    PyObject_HEAD
    QueueObject *owner;
    struct queue_place place;
    uint64_t nbytes, schema_nbytes; /* as they were when they were checked */
    int64_t published_ns;
    bool finished;
    uint8_t *writable; /* a private mapping of the item, or NULL: what its QueuePrivates export */
} QueueItemObject;

/* Read each field once, then check it, and use the checked value from then on: another process can write the memory. */
static bool header_read(QueueItemObject *item)
{
    const struct slot_header *header = (const struct slot_header *)item->place.address;
    item->nbytes = shared_read_once(header->nbytes);
    item->schema_nbytes = shared_read_once(header->schema_nbytes);
    item->published_ns = shared_read_once(header->published_ns);
    return item->nbytes <= item->place.nbytes && item->nbytes >= sizeof *header &&
           item->schema_nbytes <= item->nbytes - sizeof *header;
}

/* The next item; NULL with a status, or with an exception for STATUS_OK. */
static QueueItemObject *item_take(PyObject *self, enum status *status)
{
    struct queue_place place;
    *status = queue_side_take(side_of(self), &place);
    if (*status != STATUS_OK)
        return NULL;
    QueueItemObject *item = PyObject_New(QueueItemObject, core_of(self)->queue_item_type);
    if (item == NULL) {
        queue_side_end(side_of(self), &place, QUEUE_END_BACK);
        return NULL;
    }
    item->owner = (QueueObject *)Py_NewRef(self);
    item->place = place;
    item->writable = NULL;
    item->finished = !header_read(item); /* a damaged item is dropped: it would come back for ever */
    if (item->finished) {
        Py_DECREF(item);
        *status = STATUS_FORMAT;
        return NULL;
    }
    return item;
}

PyObject *Queue_take(PyObject *self, PyObject *unused)
{
    enum status status;
    QueueItemObject *item = item_take(self, &status);
    if (status == STATUS_EMPTY)
        Py_RETURN_NONE;
    return status == STATUS_OK ? (PyObject *)item : status_raise(core_of(self), status);
}

static bool item_has_schema(const QueueItemObject *item, PyObject *plan)
{
    const char *schema;
    const uint64_t nbytes = tree_plan_schema(plan, &schema);
    return nbytes == item->schema_nbytes && tree_plan_nbytes(plan) <= item->nbytes &&
           memcmp(item->place.address + sizeof(struct slot_header), schema, nbytes) == 0;
}

PyObject *Queue_get_tree(PyObject *self, PyObject *plan)
{
    enum status status;
    if (!PyObject_TypeCheck(plan, core_of(self)->tree_plan_type)) {
        PyErr_SetString(PyExc_TypeError, "get_tree: expected a TreePlan");
        return NULL;
    }
    QueueItemObject *item = item_take(self, &status);
    if (status == STATUS_EMPTY)
        return Py_NewRef(Py_NotImplemented);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    if (item == NULL || journal_has_news(&side_of(self)->journal) || !item_has_schema(item, plan))
        return (PyObject *)item; /* news: the caller takes its time, and reads them */
    PyObject *value = tree_plan_read(plan, (PyObject *)item, item->place.address);
    if (value != NULL) {
        status = queue_side_finish(side_of(self), &item->place);
        item->finished = status == STATUS_OK;
        if (status != STATUS_OK) {
            Py_CLEAR(value);
            status_raise(core_of(self), status);
        }
    }
    Py_DECREF(item);
    return value;
}

/* -- QueueItem and QueuePrivate ---------------------------------------------------------------------------------- */

static void QueueItem_dealloc(PyObject *self)
{
    QueueItemObject *item = (QueueItemObject *)self;
    if (item->writable != NULL)
        munmap(item->writable, item->place.nbytes);
    queue_side_end(item->owner->side, &item->place, item->finished ? QUEUE_END_FREE : QUEUE_END_BACK);
    Py_DECREF(item->owner);
    object_free(self);
}

static int QueueItem_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    QueueItemObject *item = (QueueItemObject *)self;
    return PyBuffer_FillInfo(view, self, item->place.address, (Py_ssize_t)item->nbytes, 1, flags);
}

static PyObject *QueueItem_finish(PyObject *self, PyObject *unused)
{
    QueueItemObject *item = (QueueItemObject *)self;
    if (item->finished)
        Py_RETURN_NONE;
    enum status status = queue_side_finish(item->owner->side, &item->place);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    item->finished = true;
    Py_RETURN_NONE;
}

static PyObject *QueueItem_schema(PyObject *self, PyObject *unused)
{
    const QueueItemObject *item = (const QueueItemObject *)self;
    const char *text = (const char *)item->place.address + sizeof(struct slot_header);
    return PyBytes_FromStringAndSize(text, (Py_ssize_t)item->schema_nbytes);
}

typedef struct {
    PyObject_HEAD
    QueueItemObject *item; /* it has the mapping */
} QueuePrivateObject;

static PyObject *QueueItem_private(PyObject *self, PyObject *unused)
{
    QueueItemObject *item = (QueueItemObject *)self;
    enum status status = STATUS_OK;
    OBJECT_LOCK(self);
    if (item->writable == NULL)
        status = queue_side_map_private(item->owner->side, &item->place, &item->writable);
    OBJECT_UNLOCK();
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    QueuePrivateObject *made = PyObject_New(QueuePrivateObject, core_of(self)->queue_private_type);
    if (made != NULL)
        made->item = (QueueItemObject *)Py_NewRef(self);
    return (PyObject *)made;
}

static void QueuePrivate_dealloc(PyObject *self)
{
    Py_DECREF(((QueuePrivateObject *)self)->item);
    object_free(self);
}

static int QueuePrivate_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const QueueItemObject *item = ((QueuePrivateObject *)self)->item;
    return PyBuffer_FillInfo(view, self, item->writable, (Py_ssize_t)item->nbytes, 0, flags);
}

static PyType_Slot QueuePrivate_slots[] = {
    {Py_tp_doc, "One item of a queue, writable: pages that are written become its own."},
    {Py_tp_dealloc, QueuePrivate_dealloc},
    {Py_bf_getbuffer, QueuePrivate_getbuffer},
    {0, NULL},
};
static PyType_Spec QueuePrivate_spec = {"untorn._core.QueuePrivate", sizeof(QueuePrivateObject), 0,
                                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, QueuePrivate_slots};

static PyMethodDef QueueItem_methods[] = {
    {"finish", QueueItem_finish, METH_NOARGS,
     "finish($self, /)\n--\n\n"
     "Let nobody get this item again. Its bytes stay until the last view of them is gone."},
    {"schema", QueueItem_schema, METH_NOARGS,
     "schema($self, /)\n--\n\n"
     "Return a copy of the schema's bytes."},
    {"private", QueueItem_private, METH_NOARGS,
     "private($self, /)\n--\n\n"
     "Return the same bytes, writable; no other process sees what is written."},
    {NULL, NULL, 0, NULL},
};

#define QUEUE_ITEM_FIELDS(FIELD)                                            \
    FIELD(QueueItem, nbytes, PyLong_FromUnsignedLongLong, self->nbytes)     \
    FIELD(QueueItem, published_ns, PyLong_FromLongLong, self->published_ns) \
    FIELD(QueueItem, finished, PyBool_FromLong, self->finished)
QUEUE_ITEM_FIELDS(CORE_GETTER)

static PyGetSetDef QueueItem_getset[] = {QUEUE_ITEM_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot QueueItem_slots[] = {
    {Py_tp_doc,
     "An item that was taken from a queue. Exports its bytes, read-only. When the last view of them dies, its "
     "slot is free, or, if it was not finished, it is in the queue again."},
    {Py_tp_dealloc, QueueItem_dealloc},
    {Py_tp_methods, QueueItem_methods},
    {Py_tp_getset, QueueItem_getset},
    {Py_bf_getbuffer, QueueItem_getbuffer},
    {0, NULL},
};
static PyType_Spec QueueItem_spec = {"untorn._core.QueueItem", sizeof(QueueItemObject), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, QueueItem_slots};

bool module_add_queue_take(PyObject *module)
{
    struct core *core = core_of_module(module);
    return type_add(module, &QueueItem_spec, &core->queue_item_type) &&
           type_add(module, &QueuePrivate_spec, &core->queue_private_type);
}
