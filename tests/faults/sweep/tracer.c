/* Runs a process to a chosen system call, or to a chosen instruction, and kills it there or lets the call fail.
 *
 * tracer.py compiles this with the system's compiler and loads it. The traced process says with two signals, which it
 * never gets, where the watched part begins (SIGUSR1) and ends (SIGUSR2). Between these, stops are counted: each system
 * call has two, before and after it. Instructions are counted between SIGURG and SIGWINCH, since the process comes to a
 * stop at each of these, which takes a thousand times as long. Threads of the process are traced with it. With FOLLOW_CHILD it is not the process
 * itself that is watched, but the first child that it forks.
 *
 * The tracing thread must be the same in tracer_attach and tracer_run. Of the processor it needs to know three
 * things: see "one processor's registers" below.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_THREADS = 256 };
enum { BEGIN = SIGUSR1, END = SIGUSR2, STEPS_ON = SIGURG, STEPS_OFF = SIGWINCH, CALL_STOP = SIGTRAP | 0x80 };
enum mode { COUNT, KILL_AT_STOP, FAIL_CALL, KILL_AT_STEP };
enum ending { ENDED_REACHED_END = 1, ENDED_EXITED, ENDED_KILLED_HERE, ENDED_DIED, ENDED_HUNG };

struct plan {
    int32_t mode;
    int32_t error;        /* FAIL_CALL: the errno */
    int64_t at;           /* counted from 1: the stop, the call of this number, or the instruction */
    int32_t keep_failing; /* FAIL_CALL: later calls of the same number fail too */
    int32_t do_call;      /* FAIL_CALL: the kernel does what it was asked to, and says that it failed: as close() does */
    int32_t follow_child;
    int32_t number; /* FAIL_CALL: of the system call; another that comes instead, because of threads, does not fail */
    uint64_t text_start, text_end; /* only instructions in here are counted */
    double watchdog_s;
};

struct result {
    int64_t stops, calls, steps;
    int64_t call_number; /* of the system call where it was killed or failed; the last one seen otherwise */
    int32_t at_entry;
    int32_t ended;
    int32_t status; /* as waitpid gives it, where the process ended */
    int32_t failed; /* how many calls were made to fail */
};

/* -- one processor's registers */

static int registers_get(pid_t tid, struct user_regs_struct *registers)
{
    struct iovec all = {registers, sizeof *registers};
    return (int)ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &all);
}

static void registers_set(pid_t tid, struct user_regs_struct *registers)
{
    struct iovec all = {registers, sizeof *registers};
    ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &all);
}

static uint64_t program_counter(pid_t tid)
{
    struct user_regs_struct registers;
    if (registers_get(tid, &registers) < 0)
        return 0;
#if defined(__x86_64__)
    return registers.rip;
#elif defined(__aarch64__)
    return registers.pc;
#else
#error "program_counter, call_skip and call_result_set need this processor's registers"
#endif
}

/* At the entry of a system call: let the kernel do none. */
static void call_skip(pid_t tid)
{
#if defined(__x86_64__)
    struct user_regs_struct registers;
    if (registers_get(tid, &registers) == 0) {
        registers.orig_rax = (uint64_t)-1;
        registers_set(tid, &registers);
    }
#elif defined(__aarch64__)
    int none = -1;
    struct iovec number = {&none, sizeof none};
    ptrace(PTRACE_SETREGSET, tid, (void *)NT_ARM_SYSTEM_CALL, &number);
#endif
}

/* At its exit: what it returns. */
static void call_result_set(pid_t tid, int64_t value)
{
    struct user_regs_struct registers;
    if (registers_get(tid, &registers) < 0)
        return;
#if defined(__x86_64__)
    registers.rax = (uint64_t)value;
#elif defined(__aarch64__)
    registers.regs[0] = (uint64_t)value;
#endif
    registers_set(tid, &registers);
}

/* -- the run */

struct run {
    const struct plan *plan;
    struct result *result;
    int32_t *calls; /* the number of each system call */
    int64_t room;
    int64_t seen; /* how many of these had the number that is to fail */
    pid_t target;
    pid_t failing[MAX_THREADS]; /* the threads whose calls fail just now; 0: none */
    pid_t yielding; /* the thread that is in sched_yield() */
    pid_t threads[MAX_THREADS]; /* of the target; 0: none */
    bool active, ending, stepping;
};

static void on_alarm(int signal)
{
    (void)signal; /* it interrupts waitpid, that is all */
}

static int resume_by(const struct run *run)
{
    return run->active && run->stepping ? PTRACE_SINGLESTEP : PTRACE_SYSCALL;
}

/* Kill the target and wait for its end. */
static void target_kill(struct run *run, int ended)
{
    int status;
    kill(run->target, SIGKILL);
    run->result->ended = ended;
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0 && errno != EINTR)
            return;
        if (pid == run->target && (WIFEXITED(status) || WIFSIGNALED(status))) {
            run->result->status = status;
            return;
        }
        if (pid > 0 && WIFSTOPPED(status)) /* a thread that stopped before it heard of the kill */
            ptrace(PTRACE_CONT, pid, 0, 0);
    }
}

static bool is_end_marker(const struct __ptrace_syscall_info *info)
{
    return (info->entry.nr == SYS_kill && info->entry.args[1] == END) ||
           (info->entry.nr == SYS_tgkill && info->entry.args[2] == END);
}

static bool asks_for_memory(int64_t number)
{
    return number == SYS_mmap || number == SYS_mprotect || number == SYS_munmap || number == SYS_mremap;
}

/* The others are the C library's and CPython's own, which do not expect to fail. */
static bool is_shared_wait(const struct __ptrace_syscall_info *info)
{
    int operation = (int)info->entry.args[1] & ~FUTEX_CLOCK_REALTIME;
    return operation == FUTEX_WAIT || operation == FUTEX_WAIT_BITSET;
}

static bool call_fails(const struct run *run, pid_t tid, const struct __ptrace_syscall_info *info)
{
    int64_t number = (int64_t)info->entry.nr;
    if (number != run->plan->number || (number == SYS_futex && !is_shared_wait(info)))
        return false;
    if (tid != run->target && asks_for_memory(number))
        return false; /* CPython waits for ever for a thread that has no memory to begin with */
    const struct plan *plan = run->plan;
    const struct result *result = run->result;
    return plan->mode == FAIL_CALL && (run->seen == plan->at || (plan->keep_failing && result->failed > 0));
}

/* Replace the first entry that is `from` by `to`. Returns false if there is none. */
static bool failing_replace(struct run *run, pid_t from, pid_t to)
{
    for (size_t i = 0; i < MAX_THREADS; i++) {
        if (run->failing[i] == from) {
            run->failing[i] = to;
            return true;
        }
    }
    return false;
}

static void call_enter(struct run *run, pid_t tid, const struct __ptrace_syscall_info *info)
{
    struct result *result = run->result;
    int64_t number = (int64_t)info->entry.nr;
    if (result->calls < run->room)
        run->calls[result->calls] = (int32_t)number;
    result->calls++;
    run->seen += number == run->plan->number;
    if (call_fails(run, tid, info)) {
        result->failed++;
        result->call_number = number;
        if (!failing_replace(run, 0, tid))
            abort();
        if (!run->plan->do_call)
            call_skip(tid);
    } else if (result->failed == 0) {
        result->call_number = number;
    }
}

/* Returns true if the run is over. */
static bool call_stop(struct run *run, pid_t tid)
{
    struct __ptrace_syscall_info info;
    if (!run->active || ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof info, &info) < 0)
        return false;
    bool entry = info.op == PTRACE_SYSCALL_INFO_ENTRY;
    if (!entry && failing_replace(run, tid, 0)) /* or else the kernel's ENOSYS would be seen */
        call_result_set(tid, -run->plan->error);
    if (run->ending)
        return false;
    run->ending = entry && is_end_marker(&info);
    if (run->ending)
        return false;
    if (entry && info.entry.nr == SYS_sched_yield) {
        run->yielding = tid; /* a spinning wait makes as many of these as it comes: they are no places of their own */
        return false;
    }
    if (!entry && run->yielding == tid) {
        run->yielding = 0;
        return false;
    }
    if (entry)
        call_enter(run, tid, &info);
    else if (run->result->calls == 0)
        return false; /* the end of the call that began it all */
    run->result->stops++;
    if (run->plan->mode != KILL_AT_STOP || run->result->stops != run->plan->at)
        return false;
    run->result->at_entry = entry;
    target_kill(run, ENDED_KILLED_HERE);
    return true;
}

static bool step_stop(struct run *run, pid_t tid)
{
    uint64_t at = program_counter(tid);
    if (at < run->plan->text_start || at >= run->plan->text_end)
        return false;
    run->result->steps++;
    if (run->plan->mode != KILL_AT_STEP || run->result->steps != run->plan->at)
        return false;
    target_kill(run, ENDED_KILLED_HERE);
    return true;
}

/* The process or thread that an event is about. */
static pid_t event_about(pid_t tid)
{
    unsigned long about = 0;
    ptrace(PTRACE_GETEVENTMSG, tid, 0, &about);
    return (pid_t)about;
}

static void thread_add(struct run *run, pid_t tid)
{
    for (int i = 0; i < MAX_THREADS; i++)
        if (run->threads[i] == 0) {
            run->threads[i] = tid;
            return;
        }
}

static void thread_forget(struct run *run, pid_t tid)
{
    for (int i = 0; i < MAX_THREADS; i++)
        if (run->threads[i] == tid)
            run->threads[i] = 0;
}

/* Let all threads go: the caller's is stopped, the others are stopped for it. One that ends meanwhile is reaped, which
 * nobody else could do. */
static void target_detach(struct run *run, pid_t stopped)
{
    int status;
    for (int i = 0; i < MAX_THREADS; i++) {
        pid_t tid = run->threads[i];
        if (tid == 0 || tid == stopped)
            continue;
        ptrace(PTRACE_INTERRUPT, tid, 0, 0);
        if (waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status))
            ptrace(PTRACE_DETACH, tid, 0, 0);
    }
    ptrace(PTRACE_DETACH, stopped, 0, 0);
}

static void child_follow(struct run *run, pid_t parent)
{
    run->target = event_about(parent);
    thread_add(run, run->target);
    run->active = true;
}

/* What one stop means. Returns true if the run is over; else the thread goes on, with the signal that it gets. */
static bool stop_handle(struct run *run, pid_t tid, int status, int *deliver)
{
    int signal = WSTOPSIG(status), event = status >> 16;
    *deliver = 0;
    if (signal == CALL_STOP)
        return call_stop(run, tid);
    if (event == PTRACE_EVENT_FORK && run->plan->follow_child) {
        thread_forget(run, tid);
        child_follow(run, tid);
        ptrace(PTRACE_DETACH, tid, 0, 0);
        return false;
    }
    if (event == PTRACE_EVENT_CLONE)
        thread_add(run, event_about(tid));
    if (event != 0)
        return false;
    if (signal == BEGIN) {
        run->active = !run->plan->follow_child; /* else it begins with the child */
        return false;
    }
    if (signal == END) {
        run->result->ended = ENDED_REACHED_END;
        target_detach(run, tid);
        return true;
    }
    if (signal == STEPS_ON || signal == STEPS_OFF) {
        run->stepping = signal == STEPS_ON;
        return false;
    }
    if (signal == SIGTRAP && run->plan->text_end != 0) /* of another thread it may come a little late */
        return run->active && run->stepping && step_stop(run, tid);
    *deliver = signal;
    return false;
}

static void run_loop(struct run *run)
{
    struct result *result = run->result;
    for (;;) {
        int status, deliver;
        pid_t tid = waitpid(-1, &status, __WALL);
        if (tid < 0 && errno == EINTR) {
            target_kill(run, ENDED_HUNG);
            return;
        }
        if (tid < 0) { /* nobody is left: the followed child's parent ended first */
            result->ended = ENDED_EXITED;
            return;
        }
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            thread_forget(run, tid);
            if (tid != run->target)
                continue;
            result->ended = WIFEXITED(status) ? ENDED_EXITED : ENDED_DIED;
            result->status = status;
            return;
        }
        if (stop_handle(run, tid, status, &deliver))
            return;
        ptrace(resume_by(run), tid, 0, deliver); /* fails where it was detached or killed meanwhile: fine */
    }
}

/* Trace a process, which waits in a read() meanwhile. Returns 0 or an errno. */
int tracer_attach(int pid, int follow_child)
{
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE;
    if (follow_child)
        options |= PTRACE_O_TRACEFORK;
    if (ptrace(PTRACE_SEIZE, pid, 0, options) < 0 || ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0)
        return errno;
    int status;
    pid_t got;
    while ((got = waitpid(pid, &status, __WALL)) < 0 && errno == EINTR) {
    }
    if (got < 0 || !WIFSTOPPED(status))
        return ESRCH;
    return ptrace(PTRACE_SYSCALL, pid, 0, 0) < 0 ? errno : 0;
}

/* Run it to its end, to the plan's point, or for as long as the watchdog allows. */
void tracer_run(int pid, const struct plan *plan, struct result *result, int32_t *calls, int64_t room)
{
    memset(result, 0, sizeof *result);
    struct run run = {.plan = plan, .result = result, .calls = calls, .room = room, .target = pid};
    thread_add(&run, pid);
    struct sigaction alarm = {.sa_handler = on_alarm}, before;
    struct itimerval end = {.it_value = {(time_t)plan->watchdog_s, 0}, .it_interval = {1, 0}}, none = {0};
    sigaction(SIGALRM, &alarm, &before);
    setitimer(ITIMER_REAL, &end, NULL);
    run_loop(&run);
    setitimer(ITIMER_REAL, &none, NULL);
    sigaction(SIGALRM, &before, NULL);
}
