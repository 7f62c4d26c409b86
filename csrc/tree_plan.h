/* Trees of plain values, written and read in one call: see module_tree.c. For module_queue.c and module_version.c. */
#ifndef UNTORN_TREE_PLAN_H
#define UNTORN_TREE_PLAN_H

#include "module.h"

enum { TREE_PLAN_AXES = 8 };

/* Of a version or an item with this structure, with header and schema. */
uint64_t tree_plan_nbytes(PyObject *plan);
/* Its schema, and the number of its bytes. */
uint64_t tree_plan_schema(PyObject *plan, const char **schema);
/* Write a value to a version that begins at `base`; false, with some of it written, if it has another structure. The
 * GIL is released while large arrays are copied. */
bool tree_plan_write(PyObject *plan, PyObject *value, uint8_t *base);
/* Copy what one version has behind its header to another, or all of it but the elements of arrays. The GIL is released
 * while much is copied. */
void tree_plan_copy(PyObject *plan, uint8_t *to, const uint8_t *from, bool with_arrays);
/* Return the value of a version that begins at `base`; its arrays are read-only views of `exporter`, which exports that
 * memory. */
PyObject *tree_plan_read(PyObject *plan, PyObject *exporter, uint8_t *base);

#endif
