/* Nodes with workers that die and are given up, and links between them, over sockets; sessions end in the middle of a
 * step, and shards move from node to node. Every node must arrive at the bits and the log of the serial reference.
 */
#include <sys/socket.h>

#include "board_crew.h"
#include "link.h"

enum { NODES = 3, SHARDS = 7 };

static const int64_t TIMEOUT_NS = INT64_C(60000000000);

struct site {
    struct crew crew;
    struct link *link;
    uint32_t seen;
};

static uint64_t stream;

static void links_open(struct site *sites)
{
    int sockets[NODES][NODES];
    for (uint32_t k = 0; k < NODES; k++)
        for (uint32_t j = k + 1; j < NODES; j++) {
            int pair[2];
            CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
            sockets[k][j] = pair[0];
            sockets[j][k] = pair[1];
        }
    for (uint32_t k = 0; k < NODES; k++) {
        sockets[k][k] = -1;
        sites[k].link = link_open(k, sockets[k], NODES, TIMEOUT_NS);
        CHECK(sites[k].link != NULL);
    }
    for (uint32_t k = 0; k < NODES; k++)
        for (uint32_t j = 0; j < NODES; j++)
            if (j != k)
                close(sockets[k][j]);
}

static void session_begin(struct site *site, uint64_t session, const uint32_t *cuts, uint64_t step)
{
    const struct job *job = &site->crew.job;
    uint64_t counts[2 * SHARDS], begun;
    for (uint32_t s = 0; s < SHARDS; s++) {
        counts[s] = job_examples(job, 0, s);
        counts[SHARDS + s] = job_examples(job, STEPS - 1, s);
    }
    const struct exchange_shape shape = {
        .nodes = NODES,
        .index = link_index(site->link),
        .shards = SHARDS,
        .cuts = cuts,
        .counts = counts,
        .ranges = job->ranges,
        .range_count = JOB_RANGES,
        .buffer_nbytes = job->config.buffer_nbytes,
    };
    struct exchange_plan plan;
    board_set_own(&job->board, cuts[shape.index], cuts[shape.index + 1]);
    CHECK(exchange_shape_error(&shape) == NULL && exchange_plan_make(&plan, &shape));
    CHECK(link_begin(site->link, &job->board, &plan, session, NULL, &begun) == STATUS_OK);
    CHECK(begun == step);
}

static void sites_supervise(struct site *sites)
{
    for (uint32_t k = 0; k < NODES; k++) {
        struct board_header *header = sites[k].crew.job.board.header;
        sites[k].crew.restless = true;
        crew_supervise(&sites[k].crew, sites[k].seen);
        sites[k].seen = shared_load_acquire(&header->server_bell);
        CHECK(link_problem(sites[k].link).trouble == LINK_FINE, "%s", link_problem(sites[k].link).text);
    }
}

static bool sites_are_at(const struct site *sites, uint64_t step)
{
    for (uint32_t k = 0; k < NODES; k++)
        if (board_step(&sites[k].crew.job.board) < step)
            return false;
    return true;
}

/* End the session, and have every node that is behind the others compute the rest of its step alone. Returns the step
 * at which all of them are. */
static uint64_t session_end(struct site *sites)
{
    uint64_t step = 0;
    void *owner;
    for (uint32_t k = 0; k < NODES; k++) {
        link_end(sites[k].link, check_random(&stream) % 2 ? 0 : 10000000, &owner);
        const uint64_t incomplete = board_incomplete_step(&sites[k].crew.job.board);
        step = incomplete > step ? incomplete : step;
    }
    for (uint32_t k = 0; k < NODES; k++) {
        board_set_limit(&sites[k].crew.job.board, step);
        board_set_own(&sites[k].crew.job.board, 0, SHARDS);
    }
    while (!sites_are_at(sites, step))
        sites_supervise(sites);
    return step;
}

static void train(uint32_t count, bool mortal)
{
    struct site sites[NODES];
    uint64_t step = 0, session = 1;
    for (uint32_t k = 0; k < NODES; k++) {
        sites[k] = (struct site){.crew = crew_open(SHARDS, count, 64, mortal, JOB_EXCHANGE)};
        sites[k].crew.stream = check_random(&stream);
    }
    for (uint32_t k = 0; k < NODES; k++)
        crew_start(&sites[k].crew);
    links_open(sites);
    for (; step < STEPS; session++) {
        uint32_t cuts[NODES + 1] = {0, 0, 0, SHARDS};
        cuts[1] = (uint32_t)(check_random(&stream) % (SHARDS + 1));
        cuts[2] = cuts[1] + (uint32_t)(check_random(&stream) % (SHARDS + 1 - cuts[1]));
        for (uint32_t k = 0; k < NODES; k++)
            session_begin(&sites[k], session, cuts, step);
        for (uint32_t k = 0; k < NODES; k++)
            board_set_limit(&sites[k].crew.job.board, STEPS);
        const uint64_t until = step + 1 + check_random(&stream) % (STEPS / 8);
        while (!sites_are_at(sites, until < STEPS ? until : STEPS))
            sites_supervise(sites);
        step = session_end(sites);
    }
    for (uint32_t k = 0; k < NODES; k++) {
        link_free(sites[k].link);
        crew_close(&sites[k].crew, NULL);
    }
    CHECK(session > 3, "%" PRIu64 " sessions", session);
}

int main(void)
{
    check_begin("stress_link");
    stream = check_stream(9);
    for (uint32_t count = 1; count <= 3; count++) {
        train(count, false);
        train(count, true);
    }
    printf("stress_link: %" PRIu64 " steps each, %u deaths, %u given up\n", STEPS, deaths, given_up);
    return check_end();
}
