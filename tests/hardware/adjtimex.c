/* adjtimex for LD_PRELOAD: the clock is as OFFSET, ESTERROR and STATUS in the environment say. */
#include <stdlib.h>
#include <sys/timex.h>

int adjtimex(struct timex *t)
{
	if (t->modes)
		abort(); /* it may only read */
	t->offset = atol(getenv("OFFSET"));
	t->esterror = atol(getenv("ESTERROR"));
	t->status = atoi(getenv("STATUS"));
	return 0;
}
