//! Single-threaded io_uring reactor for sockets and disks.
