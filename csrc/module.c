/* The module, its error and its functions: see module.h. */
#include "module.h"

#include "own.h"

#include <errno.h>
#include <sys/vfs.h>

static const long OVERLAYFS_MAGIC = 0x794c7630;

static const char *const STATUS_NAMES[] = {
    [STATUS_OK] = "ok",
    [STATUS_OS] = "os",
    [STATUS_FORMAT] = "format",
    [STATUS_DATA] = "data",
    [STATUS_MIXED] = "mixed",
    [STATUS_OTHER] = "other",
    [STATUS_NAMING] = "naming",
    [STATUS_LAYOUT] = "layout",
    [STATUS_BUSY] = "busy",
    [STATUS_NO_ROW] = "no_row",
    [STATUS_NO_SLOT] = "no_slot",
    [STATUS_NO_SPACE] = "no_space",
    [STATUS_FORKED] = "forked",
    [STATUS_UNLINKED] = "unlinked",
    [STATUS_TRUNCATED] = "truncated",
    [STATUS_TIMEOUT] = "timeout",
    [STATUS_EMPTY] = "empty",
    [STATUS_ENDED] = "ended",
    [STATUS_FULL] = "full",
    [STATUS_NO_ROOM] = "no_room",
    [STATUS_TOO_LARGE] = "too_large",
    [STATUS_BOOT] = "boot",
    [STATUS_NOT_OWNED] = "not_owned",
    [STATUS_INTERRUPTED] = "interrupted",
};

PyObject *status_raise(const struct core *core, enum status status)
{
    if (status == STATUS_OS)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *args = Py_BuildValue("(si)", STATUS_NAMES[status], errno);
    if (args != NULL) {
        PyErr_SetObject(core->status_error, args);
        Py_DECREF(args);
    }
    return NULL;
}

void object_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type); /* an object of a heap type owns a reference to it */
}

bool list_append_new(PyObject *list, PyObject *item)
{
    bool done = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return done;
}

PyObject *journal_read(struct journal *journal, pthread_mutex_t *lock)
{
    struct journal_entry entries[JOURNAL_MAX];
    pthread_mutex_lock(lock);
    const uint32_t unread = shared_load_relaxed(&journal->unread);
    const uint32_t count = unread < JOURNAL_MAX ? unread : JOURNAL_MAX;
    for (uint32_t i = 0; i < count; i++)
        entries[i] = journal->entries[i];
    journal_clear(journal);
    pthread_mutex_unlock(lock);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        const struct journal_entry *entry = &entries[i];
        if (!list_append_new(list,
                             Py_BuildValue("(iIKKK)", (int)entry->kind, entry->pid, (unsigned long long)entry->slots,
                                           (unsigned long long)entry->nbytes, (unsigned long long)entry->returned)))
            Py_CLEAR(list);
    }
    return list == NULL ? NULL : Py_BuildValue("(NI)", list, unread - count);
}

static PyObject *core_format_control(PyObject *module, PyObject *args)
{
    int fd;
    const char *id;
    Py_ssize_t id_nbytes;
    unsigned max_readers, max_slots, keep_slots;
    if (!PyArg_ParseTuple(args, "iy#III", &fd, &id, &id_nbytes, &max_readers, &max_slots, &keep_slots))
        return NULL;
    if (id_nbytes != 16) {
        PyErr_Format(PyExc_ValueError, "channel id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    enum status status = attachment_format(fd, (const uint8_t *)id, max_readers, max_slots, keep_slots);
    if (status != STATUS_OK)
        return status_raise(core_of_module(module), status);
    Py_RETURN_NONE;
}

static PyObject *core_own_descriptor(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    return own_descriptor((int)fd) == 0 ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *core_own_descriptor_end(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    own_descriptor_end((int)fd);
    Py_RETURN_NONE;
}

static PyObject *core_format_data(PyObject *module, PyObject *args)
{
    int fd;
    const char *id;
    Py_ssize_t id_nbytes;
    if (!PyArg_ParseTuple(args, "iy#", &fd, &id, &id_nbytes))
        return NULL;
    if (id_nbytes != CHANNEL_ID_NBYTES) {
        PyErr_Format(PyExc_ValueError, "channel id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    enum status status = attachment_format_data(fd, (const uint8_t *)id);
    if (status != STATUS_OK)
        return status_raise(core_of_module(module), status);
    Py_RETURN_NONE;
}

static PyObject *core_control_nbytes(PyObject *module, PyObject *argument)
{
    unsigned long max_readers = PyLong_AsUnsignedLong(argument);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(attachment_control_nbytes((uint32_t)max_readers));
}

/* A mapping of a read-only descriptor of overlayfs keeps the lower layer's pages when a writer has the file copied
 * up. */
static PyObject *core_is_overlay(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    struct statfs stat;
    if (PyErr_Occurred())
        return NULL;
    return fstatfs((int)fd, &stat) == 0 ? PyBool_FromLong(stat.f_type == OVERLAYFS_MAGIC)
                                        : PyErr_SetFromErrno(PyExc_OSError);
}

static PyMethodDef core_methods[] = {
    {"format_control", core_format_control, METH_VARARGS,
     "format_control($module, fd, id, max_readers, max_slots, keep_slots, /)\n--\n\n"
     "Lay out a new control file."},
    {"own_descriptor", core_own_descriptor, METH_O,
     "own_descriptor($module, fd, /)\n--\n\n"
     "Have the descriptor closed in forked children."},
    {"own_descriptor_end", core_own_descriptor_end, METH_O,
     "own_descriptor_end($module, fd, /)\n--\n\n"
     "Stop that: the descriptor is about to be closed here."},
    {"format_data", core_format_data, METH_VARARGS,
     "format_data($module, fd, id, /)\n--\n\n"
     "Write the header of a data file that begins with zeros, or was cut off within it."},
    {"control_nbytes", core_control_nbytes, METH_O,
     "control_nbytes($module, max_readers, /)\n--\n\n"
     "Return the size of a control file."},
    {"is_overlay", core_is_overlay, METH_O,
     "is_overlay($module, fd, /)\n--\n\n"
     "Return whether the file is on overlayfs."},
    {NULL, NULL, 0, NULL},
};

bool type_add(PyObject *module, PyType_Spec *spec, PyTypeObject **keep)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) != 0) {
        Py_XDECREF(type);
        return false;
    }
    if (keep != NULL)
        *keep = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return true;
}

bool constants_add(PyObject *module, const struct core_constant *constant)
{
    for (; constant->name != NULL; constant++)
        if (PyModule_AddIntConstant(module, constant->name, constant->value) != 0)
            return false;
    return true;
}

static bool error_add(PyObject *module, struct core *core)
{
    PyObject *errors = PyImport_ImportModule("untorn.errors");
    PyObject *root = errors == NULL ? NULL : PyObject_GetAttrString(errors, "UntornError");
    if (root != NULL)
        core->status_error =
            PyErr_NewExceptionWithDoc("untorn._core.StatusError", "(code, errno) from the core.", root, NULL);
    Py_XDECREF(root);
    Py_XDECREF(errors);
    return core->status_error != NULL && PyModule_AddObjectRef(module, "StatusError", core->status_error) == 0;
}

/* -- the module ---------------------------------------------------------------------------------------------------- */

static int core_exec(PyObject *module)
{
    const bool done = error_add(module, core_of_module(module)) && module_add_channel(module) &&
                      module_add_queue(module) && module_add_tree(module) && module_add_board(module) &&
                      module_add_link(module) && module_add_waiting(module) && module_add_frozen(module) &&
                      module_add_block(module) && module_add_copy(module) && module_add_step(module) &&
                      module_add_sibling(module);
    return done ? 0 : -1;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct core *core = core_of_module(module);
    Py_VISIT(core->status_error);
    Py_VISIT(core->attachment_type);
    Py_VISIT(core->hold_type);
    Py_VISIT(core->private_type);
    Py_VISIT(core->draft_type);
    Py_VISIT(core->tree_plan_type);
    Py_VISIT(core->queue_type);
    Py_VISIT(core->queue_gate_type);
    Py_VISIT(core->queue_draft_type);
    Py_VISIT(core->queue_item_type);
    Py_VISIT(core->queue_private_type);
    Py_VISIT(core->board_type);
    Py_VISIT(core->frozen_iterator_type);
    Py_VISIT(core->frozen_table_type);
    Py_VISIT(core->frozen_memory_type);
    Py_VISIT(core->frozen_builder_type);
    Py_VISIT(core->frozen_part_type);
    return 0;
}

static int core_clear(PyObject *module)
{
    struct core *core = core_of_module(module);
    Py_CLEAR(core->status_error);
    Py_CLEAR(core->attachment_type);
    Py_CLEAR(core->hold_type);
    Py_CLEAR(core->private_type);
    Py_CLEAR(core->draft_type);
    Py_CLEAR(core->tree_plan_type);
    Py_CLEAR(core->queue_type);
    Py_CLEAR(core->queue_gate_type);
    Py_CLEAR(core->queue_draft_type);
    Py_CLEAR(core->queue_item_type);
    Py_CLEAR(core->queue_private_type);
    Py_CLEAR(core->board_type);
    Py_CLEAR(core->frozen_iterator_type);
    Py_CLEAR(core->frozen_table_type);
    Py_CLEAR(core->frozen_memory_type);
    Py_CLEAR(core->frozen_builder_type);
    Py_CLEAR(core->frozen_part_type);
    return 0;
}

static void core_free(void *module) { core_clear(module); }

/* Py_mod_multiple_interpreters is left out. The Limited API of 3.11 does not have it, and its default is right:
 * interpreters that share a GIL may each import the module. Only the registries of fork.c and own.c and their fork
 * handlers stay static: they belong to the process, have their own locks and refer to no Python object. */
static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "untorn._core",
    .m_doc = "The core of untorn, in C: channels, the board and the kernels.",
    .m_size = sizeof(struct core),
    .m_methods = core_methods,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

struct core *core_of_module(PyObject *module) { return PyModule_GetState(module); }

struct core *core_of_class(PyTypeObject *type)
{
    for (; type != NULL; type = PyType_GetSlot(type, Py_tp_base)) {
        PyObject *module = PyType_GetModule(type); /* borrowed; TypeError if the class was made by no module */
        if (module != NULL && PyModule_GetDef(module) == &core_module)
            return PyModule_GetState(module);
        PyErr_Clear();
    }
    PyErr_SetString(PyExc_TypeError, "the class is not derived from one of untorn._core");
    return NULL;
}

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&core_module); }
