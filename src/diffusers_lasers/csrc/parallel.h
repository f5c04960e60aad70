/* Distributes the tasks of one call over threads.
 *
 * The threads of torch stay active for a while after their work. Threads of our own would wait for a core for
 * milliseconds. If torch runs on GNU's OpenMP, `team` is the entry of the library that torch has loaded, and its
 * threads do our tasks too; nothing is linked. This pool of threads does not survive a fork. In a forked child, and if there is
 * no such library, each call starts its own threads and joins them at the end. A counter hands out one task at a time,
 * so that a thread that starts late or shares its core gets fewer tasks.
 */

typedef void (*team_entry)(void (*task)(void *), void *data, unsigned threads, unsigned flags); /* GOMP_parallel */
static team_entry team;
static pid_t team_process;

typedef struct job {
    void (*task)(const void *arguments, void *workspace, long index);
    const void *arguments;
    size_t workspace; /* bytes for each thread, uninitialised and aligned */
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

/* Returns 0, or −1 if there is not enough memory. It may use fewer threads than given. */
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

/* Requests huge pages for a large array, so that random reads of its rows seldom miss the TLB. */
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
