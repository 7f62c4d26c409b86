/* Versions whose structure is that of the one before: published, edited and read in one call each. See module.h.
 *
 * Python takes these steps one by one (share/versions.py, share/edit.py, share/layout.py), and can say what is wrong.
 * Here the usual case is one call, and anything unusual is left to those. A slot that is written here has no version
 * until it is complete, so the caller's knowledge of what slots contain stays right, whatever interrupts it.
 */
#include "module.h"

#include <string.h>

#include "futex.h"
#include "tree_plan.h"

/* A slot is picked without the GIL if much memory may have to be reserved for it. */
enum { VERSION_SMALL_NBYTES = 65536 };
static const uint64_t VERSIONS_END = UINT64_C(1) << 58;

static bool plan_check(const struct core *core, PyObject *plan)
{
    if (!PyObject_TypeCheck(plan, core->tree_plan_type))
        PyErr_SetString(PyExc_TypeError, "expected a TreePlan");
    return !PyErr_Occurred();
}

/* Return the draft of a slot for the next version, which has no version yet; NULL if there is none. The only trouble
 * that is an exception is the one that is told once, STATUS_TRUNCATED. */
static DraftObject *draft_begin(PyObject *self, uint64_t nbytes)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    unsigned slot = 0;
    enum status status;
    if (a->role != ROLE_PUBLISHER || a->forked || latest_version(channel_latest(&a->channel)) + 1 >= VERSIONS_END)
        return NULL;
    if (nbytes <= VERSION_SMALL_NBYTES) {
        status = attachment_pick(a, nbytes, &slot);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = attachment_pick(a, nbytes, &slot);
        Py_END_ALLOW_THREADS
    }
    if (status == STATUS_OK && journal_has_news(&a->journal)) /* the caller goes the long way, and reads them */
        return NULL;
    DraftObject *draft = status == STATUS_OK ? (DraftObject *)draft_make((AttachmentObject *)self, slot) : NULL;
    if (status == STATUS_TRUNCATED)
        status_raise(core_of(self), status);
    else if (draft == NULL)
        PyErr_Clear();
    else if (draft->nbytes < nbytes)
        Py_CLEAR(draft);
    else
        ((struct slot_header *)draft->address)->version = 0;
    return draft;
}

/* Make the slot the latest, and store the latest word. The draft may have been sealed, so this writes to the slot as it
 * is mapped now. */
static enum status draft_publish(const DraftObject *draft, PyObject *plan, uint64_t schema_id, uint64_t *latest)
{
    struct attachment *a = draft->owner->attachment;
    const char *schema;
    const uint64_t version = latest_version(channel_latest(&a->channel)) + 1;
    const uint64_t nbytes = tree_plan_nbytes(plan), schema_nbytes = tree_plan_schema(plan, &schema);
    uint8_t *address;
    uint64_t capacity;
    if (a->forked)
        return STATUS_FORKED;
    enum status status = attachment_map(a, draft->slot, &address, &capacity);
    if (status != STATUS_OK || capacity < nbytes)
        return status == STATUS_OK ? STATUS_FORMAT : status;
    memcpy(address + sizeof(struct slot_header), schema, schema_nbytes);
    const struct slot_header header = {
        .version = version,
        .published_ns = clock_wall_ns(),
        .nbytes = nbytes,
        .schema_nbytes = schema_nbytes,
        .schema_id = schema_id,
    };
    status = attachment_finish(a, draft->slot, &header);
    if (status != STATUS_OK)
        return status;
    channel_publish(&a->channel, version, draft->slot);
    *latest = latest_make(version, draft->slot);
    return STATUS_OK;
}

PyObject *version_publish_tree(PyObject *self, PyObject *args)
{
    PyObject *plan, *value;
    unsigned long long schema_id;
    uint64_t latest = 0;
    if (!PyArg_ParseTuple(args, "OOK", &plan, &value, &schema_id) || !plan_check(core_of(self), plan))
        return NULL;
    DraftObject *draft = draft_begin(self, tree_plan_nbytes(plan));
    if (draft != NULL && tree_plan_write(plan, value, draft->address))
        (void)draft_publish(draft, plan, schema_id, &latest);
    Py_XDECREF((PyObject *)draft);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(latest);
}

PyObject *version_begin_tree(PyObject *self, PyObject *args)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    PyObject *plan;
    int with_arrays;
    if (!PyArg_ParseTuple(args, "Op", &plan, &with_arrays) || !plan_check(core_of(self), plan))
        return NULL;
    const uint64_t nbytes = tree_plan_nbytes(plan);
    DraftObject *draft = draft_begin(self, nbytes);
    if (draft == NULL)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    DraftObject *newest = (DraftObject *)draft_make((AttachmentObject *)self, latest_slot(channel_latest(&a->channel)));
    const bool fits = newest != NULL && newest->nbytes >= nbytes;
    if (fits)
        tree_plan_copy(plan, draft->address, newest->address, with_arrays);
    else
        PyErr_Clear();
    Py_XDECREF((PyObject *)newest);
    if (fits)
        return (PyObject *)draft;
    Py_DECREF((PyObject *)draft);
    Py_RETURN_NONE;
}

PyObject *version_end_tree(PyObject *self, PyObject *args)
{
    PyObject *plan, *draft;
    unsigned long long schema_id;
    if (!PyArg_ParseTuple(args, "OO!K", &plan, core_of(self)->draft_type, &draft, &schema_id) ||
        !plan_check(core_of(self), plan))
        return NULL;
    uint64_t latest;
    enum status status = draft_publish((DraftObject *)draft, plan, schema_id, &latest);
    return status == STATUS_OK ? PyLong_FromUnsignedLongLong(latest) : status_raise(core_of(self), status);
}
