/* The border between fio's side of the engine (ioengine.c) and the engine (abi.rs, which says the same in Rust). */

#ifndef BLOCKYARD_H
#define BLOCKYARD_H

#include <stddef.h>
#include <stdint.h>

struct io_u;
struct blockyard_engine;

/* What the options say. Strings are NULL where nothing was said. */
struct blockyard_settings {
	const char *image;
	const char *pool;
	const char *etcd;
	const char *conf;
	const char *key_file;
	const char *store;
	uint64_t size;		/* bytes; 0: not said */
	uint32_t mode;
	uint32_t encrypt;
	uint32_t busy_poll_us;	/* at most BLOCKYARD_BUSY_POLL_US_MAX */
};

#define BLOCKYARD_BUSY_POLL_US_MAX 1000000

enum blockyard_mode {
	BLOCKYARD_CLUSTER = 0,
	BLOCKYARD_STORE = 1,
};

enum blockyard_kind {
	BLOCKYARD_READ = 0,
	BLOCKYARD_WRITE = 1,
	BLOCKYARD_TRIM = 2,
	BLOCKYARD_SYNC = 3,
};

/* Functions that can fail for many reasons leave a sentence in `why`, always ended by a zero. */

/* Finds out how large the target is. Returns 0, or an error number. Leaves nothing behind, no thread either. */
int blockyard_look(const struct blockyard_settings *settings, uint64_t *size, char *why, size_t why_len);

/* Opens the target for the calling thread, which alone may use it. NULL if that fails. */
struct blockyard_engine *blockyard_open(const struct blockyard_settings *settings, uint32_t depth, char *why,
					size_t why_len);

/* Takes an operation. Returns 0, an error number, or -1 if `depth` of them are under way. */
int blockyard_queue(struct blockyard_engine *engine, struct io_u *io_u, uint32_t kind, uint64_t offset, void *memory,
		    uint64_t len);

/*
 * Sends what was taken, and waits until at least `min` operations have ended, or for `timeout_ns` if that is not
 * negative. Returns how many have, at most `max`, or an error number below 0.
 */
int blockyard_getevents(struct blockyard_engine *engine, uint32_t min, uint32_t max, int64_t timeout_ns);

/* One of those that the last blockyard_getevents counted; its error number goes to `error`. */
struct io_u *blockyard_event(struct blockyard_engine *engine, int index, int *error);

/* Ends everything. Leaves a sentence in `why` if something could not be brought to a good end. */
void blockyard_close(struct blockyard_engine *engine, char *why, size_t why_len);

#endif
