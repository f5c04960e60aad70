/* Tasks of one call spread over threads.
 *
 * Torch's threads stay awake for a while after their own work, so that threads of ours would wait for a core for milliseconds. Where torch runs on
 * GNU's OpenMP, `team` is the entry of the very library that it has loaded, and its threads do our tasks too; nothing is linked. That pool does not survive a
 * fork. In a child, and where there is no such library, a call starts threads of its own that live as long as it does. Tasks are handed out one at a time by
 * a counter: a thread that starts late, or shares its core, takes fewer.
 */

typedef void (*team_entry)(void (*task)(void *), void *data, unsigned threads, unsigned flags); /* GOMP_parallel */
static team_entry team;
static pid_t team_process;

typedef struct job {
    void (*task)(const void *arguments, void *workspace, long index);
    const void *arguments;
    size_t workspace; /* bytes that each thread gets, uninitialised and aligned */
    long tasks;
    atomic_long next;
    atomic_int failed;
} job;

static void *work(void *pointer)
{
    job *j = pointer;
    void *workspace = NULL;
    if (j->workspace && posix_memalign(&workspace, 64, j->workspace)) {
        atomic_store(&j->failed, 1);
        return NULL;
    }
    for (long index; (index = atomic_fetch_add(&j->next, 1)) < j->tasks;) j->task(j->arguments, workspace, index);
    free(workspace);
    return NULL;
}

static void work_in_team(void *pointer) { work(pointer); }

#define MAX_THREADS 256

/* 0, or −1 where memory ran out. Fewer threads than asked for are no error. */
static int run(job *j, int threads)
{
    pthread_t thread[MAX_THREADS];
    int started = 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > j->tasks) threads = (int)j->tasks;
    if (team && threads > 1 && team_process == getpid()) {
        team(work_in_team, j, (unsigned)threads, 0);
        return atomic_load(&j->failed) ? -1 : 0;
    }
    while (started < threads - 1 && !pthread_create(&thread[started], NULL, work, j)) started++;
    work(j);
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    return atomic_load(&j->failed) ? -1 : 0;
}

/* Asks for large pages in a large array: rows read at random then seldom miss the TLB. */
static void prefer_huge_pages(const void *memory, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    const size_t page = 1 << 21;
    uintptr_t start = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + bytes) / page * page;
    if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}
