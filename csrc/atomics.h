/* The one place where memory orders are chosen.
 *
 * The core touches every shared word through these names only. A reader finds the partner of an order by searching for
 * the name, and a checker replaces all of them in one place (tests/c/hooks.h). x86 would forgive most mistakes here;
 * aarch64 does not, so nothing relies on the processor's own ordering.
 *
 *   shared_load_acquire   pairs with   shared_store_release, shared_swap, shared_add, shared_set, shared_clear,
 *                                      shared_raise_u32, and on success shared_swap_if and shared_swap_if_u32
 *   fence_full            pairs with   fence_full: of two processes that each store, fence and then load the other's
 *                                      word, at least one sees the other's store (Dekker's argument)
 *   shared_load_relaxed, shared_store_relaxed: for words with a single writer that are read by that writer, or are
 *                                      ordered by a fence beside them, or say nothing about other memory
 */
#ifndef UNTORN_ATOMICS_H
#define UNTORN_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint32_t shared_u32;
typedef _Atomic uint64_t shared_u64;
typedef _Atomic int64_t shared_i64;

_Static_assert(sizeof(shared_u32) == 4 && sizeof(shared_u64) == 8 && sizeof(shared_i64) == 8,
               "shared words have no hidden lock");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "a lock inside an atomic would be left locked by a killed process");

#define shared_load_relaxed(word) atomic_load_explicit((word), memory_order_relaxed)
#define shared_load_acquire(word) atomic_load_explicit((word), memory_order_acquire)
#define shared_store_relaxed(word, value) atomic_store_explicit((word), (value), memory_order_relaxed)
#define shared_store_release(word, value) atomic_store_explicit((word), (value), memory_order_release)
#define shared_swap(word, value) atomic_exchange_explicit((word), (value), memory_order_acq_rel)
#define shared_add(word, value) atomic_fetch_add_explicit((word), (value), memory_order_acq_rel)
#define shared_set(word, bits) atomic_fetch_or_explicit((word), (bits), memory_order_acq_rel)
#define shared_clear(word, bits) atomic_fetch_and_explicit((word), ~(bits), memory_order_acq_rel)
#define fence_full() atomic_thread_fence(memory_order_seq_cst)

/* Replace `expected` by `desired`; false, changing nothing, if the word holds something else. */
static inline bool shared_swap_if(shared_u64 *word, uint64_t expected, uint64_t desired)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* The same for a word of 32 bits. */
static inline bool shared_swap_if_u32(shared_u32 *word, uint32_t expected, uint32_t desired)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* Raise the word to at least `value`; it never falls. Release: pairs with shared_load_acquire. */
static inline void shared_raise_u32(shared_u32 *word, uint32_t value)
{
    uint32_t found = shared_load_relaxed(word);
    while (found < value &&
           !atomic_compare_exchange_weak_explicit(word, &found, value, memory_order_release, memory_order_relaxed)) {
    }
}

/* Load a plain field of memory that another process may overwrite at any time, exactly once: the value that is checked
 * is then the value that is used. It orders nothing. */
#define shared_read_once(field) (*(const volatile __typeof__(field) *)&(field))

/* Tell the processor that this is a spin loop. */
static inline void spin_hint(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

#endif
