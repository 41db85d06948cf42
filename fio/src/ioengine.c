/*
 * fio's side of the engine: options, the table of functions, and what they do with fio's structures. Everything else is
 * in Rust, behind blockyard.h.
 *
 * Compiled against the headers of one version of fio, whose structures change from version to version. So nothing is
 * handed to another fio, or to one that was built in another way: see blockyard_ioengine() and is_laid_out_alike().
 */

#include "fio.h"
#include "optgroup.h"

#include "blockyard.h"

#define WHY_LEN 512

/* While fio reads options, the first member is its job. */
struct engine_options {
	struct thread_data *td;
	char *image;
	char *pool;
	char *etcd;
	char *conf;
	char *key_file;
	char *store;
	unsigned long long size;
	unsigned int mode;
	unsigned int encrypt;
	unsigned int busy_poll_us;
};

#define OPTION_STRING(NAME, MEMBER, HELP)				\
	{								\
		.name = NAME,						\
		.lname = NAME,						\
		.type = FIO_OPT_STR_STORE,				\
		.off1 = offsetof(struct engine_options, MEMBER),	\
		.help = HELP,						\
		.category = FIO_OPT_C_ENGINE,				\
		.group = FIO_OPT_G_INVALID,				\
	}

static struct fio_option options[] = {
	OPTION_STRING("blockyard_image", image, "Name of the image"),
	OPTION_STRING("blockyard_pool", pool, "Name of its pool (default: default)"),
	OPTION_STRING("blockyard_etcd", etcd,
		      "The cluster: HOST:PORT[,..] of its state store, or the directory of 'blockyard up'"),
	OPTION_STRING("blockyard_conf", conf, "Settings of this machine, as 'blockyard --config' takes them"),
	OPTION_STRING("blockyard_key_file", key_file, "File with the cluster's key, if it has one"),
	{
		.name = "blockyard_encrypt",
		.lname = "blockyard_encrypt",
		.type = FIO_OPT_BOOL,
		.off1 = offsetof(struct engine_options, encrypt),
		.help = "Encrypt the connections to OSDs; needs the cluster's key",
		.def = "0",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "blockyard_busy_poll_us",
		.lname = "blockyard_busy_poll_us",
		.type = FIO_OPT_INT,
		.off1 = offsetof(struct engine_options, busy_poll_us),
		.maxval = BLOCKYARD_BUSY_POLL_US_MAX,
		.help = "How long to look for answers before sleeping, in microseconds",
		.def = "0",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "blockyard_size",
		.lname = "blockyard_size",
		.type = FIO_OPT_STR_VAL,
		.off1 = offsetof(struct engine_options, size),
		.help = "Without an image: make one of this size for each job, and remove it at the end. Mode store: size to use",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "blockyard_mode",
		.lname = "blockyard_mode",
		.type = FIO_OPT_STR,
		.off1 = offsetof(struct engine_options, mode),
		.help = "What to measure",
		.def = "cluster",
		.posval = {
			{ .ival = "cluster", .oval = BLOCKYARD_CLUSTER, .help = "An image of a cluster" },
			{ .ival = "store", .oval = BLOCKYARD_STORE, .help = "The store of an OSD alone, in this process" },
		},
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	OPTION_STRING("blockyard_store", store, "Mode store: the file or block device"),
	{
		.name = NULL,
	},
};

static struct ioengine_ops ioengine;

static struct blockyard_settings settings_of(const struct thread_data *td)
{
	const struct engine_options *o = td->eo;

	return (struct blockyard_settings) {
		.image = o->image,
		.pool = o->pool,
		.etcd = o->etcd,
		.conf = o->conf,
		.key_file = o->key_file,
		.store = o->store,
		.size = o->size,
		.mode = o->mode,
		.encrypt = o->encrypt,
		.busy_poll_us = o->busy_poll_us,
	};
}

extern struct fio_option fio_options[] __attribute__((weak));

/* Whether this fio has a member of its options where our headers have it. */
static bool has_option_at(const char *name, unsigned int offset)
{
	const struct fio_option *o;

	for (o = fio_options; o && o->name; o++)
		if (!strcmp(o->name, name))
			return o->off1 == offset;
	return false;
}

/*
 * The version is the same, but somebody may have compiled fio with other switches. So this looks at what can be seen of the
 * structures from here, before they are relied on.
 */
static bool is_laid_out_alike(const struct thread_data *td)
{
	const struct engine_options *o = td->eo;

	if (td->io_ops == &ioengine && o && (!o->td || o->td == td) && o->mode <= BLOCKYARD_STORE &&
	    has_option_at("iodepth", offsetof(struct thread_options, iodepth)) &&
	    has_option_at("nrfiles", offsetof(struct thread_options, nr_files)) &&
	    has_option_at("filename", offsetof(struct thread_options, filename)))
		return true;
	log_err("fio: blockyard: this fio was built in another way than the engine's headers say\n");
	return false;
}

static int engine_setup(struct thread_data *td)
{
	struct blockyard_settings settings;
	char why[WHY_LEN] = "";
	uint64_t size = 0;
	int error;

	if (!is_laid_out_alike(td))
		return 1;
	/* The image takes the place of fio's file. */
	if (!td->files_index) {
		add_file(td, "blockyard", 0, 0);
		td->o.nr_files = td->o.nr_files ? : 1;
		td->o.open_files++;
	}
	if (td->o.nr_files != 1) {
		log_err("fio: blockyard: a job has one image: leave out nrfiles, and give at most one filename\n");
		return 1;
	}
	settings = settings_of(td);
	error = blockyard_look(&settings, &size, why, sizeof(why));
	if (error) {
		log_err("fio: blockyard: %s\n", why);
		td_verror(td, error, "blockyard_look");
		return 1;
	}
	td->files[0]->real_file_size = size;
	return 0;
}

static int engine_init(struct thread_data *td)
{
	struct blockyard_settings settings;
	char why[WHY_LEN] = "";

	if (!is_laid_out_alike(td))
		return EINVAL;
	settings = settings_of(td);
	td->io_ops_data = blockyard_open(&settings, td->o.iodepth, why, sizeof(why));
	if (td->io_ops_data)
		return 0;
	log_err("fio: blockyard: %s\n", why);
	return EIO;
}

static void engine_cleanup(struct thread_data *td)
{
	char why[WHY_LEN] = "";

	if (!td->io_ops_data)
		return;
	blockyard_close(td->io_ops_data, why, sizeof(why));
	td->io_ops_data = NULL;
	if (*why)
		log_err("fio: blockyard: %s\n", why);
}

static enum fio_q_status engine_queue(struct thread_data *td, struct io_u *io_u)
{
	uint32_t kind;
	int error;

	fio_ro_check(td, io_u);
	switch (io_u->ddir) {
	case DDIR_READ:
		kind = BLOCKYARD_READ;
		break;
	case DDIR_WRITE:
		kind = BLOCKYARD_WRITE;
		break;
	case DDIR_TRIM:
		kind = BLOCKYARD_TRIM;
		break;
	case DDIR_SYNC:
	case DDIR_DATASYNC:
	case DDIR_SYNC_FILE_RANGE:
		kind = BLOCKYARD_SYNC;
		break;
	default:
		io_u->error = EINVAL;
		return FIO_Q_COMPLETED;
	}
	error = blockyard_queue(td->io_ops_data, io_u, kind, io_u->offset, io_u->xfer_buf, io_u->xfer_buflen);
	if (!error)
		return FIO_Q_QUEUED;
	if (error < 0)
		return FIO_Q_BUSY;
	io_u->error = error;
	return FIO_Q_COMPLETED;
}

static int engine_getevents(struct thread_data *td, unsigned int min, unsigned int max, const struct timespec *t)
{
	int64_t timeout_ns = -1;

	if (t)
		timeout_ns = t->tv_sec < 1000000 ? (int64_t) t->tv_sec * 1000000000 + t->tv_nsec : -1;
	return blockyard_getevents(td->io_ops_data, min, max, timeout_ns);
}

static struct io_u *engine_event(struct thread_data *td, int event)
{
	int error = 0;
	struct io_u *io_u = blockyard_event(td->io_ops_data, event, &error);

	if (io_u)
		io_u->error = error;
	return io_u;
}

static int engine_open_file(struct thread_data *td, struct fio_file *f)
{
	return 0;
}

static int engine_invalidate(struct thread_data *td, struct fio_file *f)
{
	return 0;
}

/*
 * There is no `commit`: what was queued goes out with the system call that waits for answers, in `getevents`, and earlier
 * if it is much.
 */
static struct ioengine_ops ioengine = {
	.name = "blockyard",
	.version = FIO_IOOPS_VERSION,
	.flags = FIO_DISKLESSIO | FIO_NOEXTEND | FIO_NODISKUTIL | FIO_NO_OFFLOAD,
	.setup = engine_setup,
	.init = engine_init,
	.cleanup = engine_cleanup,
	.queue = engine_queue,
	.getevents = engine_getevents,
	.event = engine_event,
	.open_file = engine_open_file,
	.invalidate = engine_invalidate,
	.options = options,
	.option_struct_size = sizeof(struct engine_options),
};

extern const char fio_version_string[] __attribute__((weak));

/* The table, for get_ioengine() of abi.rs; NULL if this fio is not the one whose headers were used. */
struct ioengine_ops *blockyard_ioengine(void);
struct ioengine_ops *blockyard_ioengine(void)
{
	const char *running = fio_version_string ? fio_version_string : "a fio that does not tell its version";

	if (!strcmp(running, FIO_VERSION))
		return &ioengine;
	fprintf(stderr, "fio: blockyard: the engine was built for %s, this is %s: run fio/headers and build it again\n",
		FIO_VERSION, running);
	return NULL;
}
