#!/bin/bash
# A kernel's NBD client in a guest. Settings: PORT, EXPORT, CONNECTIONS (1), CASE:
#   reconnect  ext4 and xfs: write, unmount, disconnect, connect again, verify
#   crash      the same with the server killed and restarted while mounted. /share/crash.N asks for it, and
#              /share/restarted.N tells that it is done
# tests/e2e/tests/it/kernel.rs runs it.
. /lib/kernel-client
modprobe nbd 2>/dev/null || true

connect() {
    nbd-client "$HOST" "$PORT" /dev/nbd0 -N "$EXPORT" -C "${CONNECTIONS:-1}" >/tmp/nbd.log 2>&1 ||
        { cat /tmp/nbd.log >&2; return 1; }
    wait_for 10 grep -qv '^0$' /sys/block/nbd0/size
}
disconnect() {
    nbd-client -d /dev/nbd0 >/dev/null
    wait_for 10 [ ! -e /sys/block/nbd0/pid ]
}
format() {
    case $1 in
        ext4) mkfs.ext4 -q -F /dev/nbd0 ;;
        *) mkfs."$1" -q -f /dev/nbd0 ;;
    esac
}

# Two jobs at once, so that both connections have something to do; each checks what it wrote.
two_writers() {
    fio --name=pair --directory=/mnt --numjobs=2 --size=8M --rw=randwrite --bs=16k --iodepth=8 --ioengine=libaio --direct=1 \
        --verify=crc32c --verify_fatal=1 --output-format=terse >/tmp/fio.log 2>&1 || { cat /tmp/fio.log; die "fio"; }
    rm /mnt/pair.*
}

reconnect() {
    connect
    step "connected: $(blockdev --getsize64 /dev/nbd0) bytes, ${CONNECTIONS:-1} connections"
    for type in ext4 xfs; do
        format $type
        mount -t $type -o discard /dev/nbd0 /mnt
        two_writers
        fill /mnt
        umount /mnt
        disconnect
        connect
        mount -t $type -o discard /dev/nbd0 /mnt
        verify /mnt
        fstrim /mnt
        umount /mnt
        step "$type verified"
    done
    disconnect
}

# Writes that nobody waits for go on while the server dies: the journal has something to repair.
noise() {
    while dd if=/dev/urandom of=/mnt/noise/$RANDOM bs=64k count=4 conv=fsync status=none 2>/dev/null; do :; done
}

crash() {
    local n=0
    for type in ext4 xfs; do
        n=$((n + 1))
        connect
        format $type
        mount -t $type /dev/nbd0 /mnt
        fill /mnt
        mkdir /mnt/noise
        sync -f /mnt
        noise &
        sleep 1
        touch /share/crash.$n
        wait_for 60 [ -e /share/restarted.$n ]
        # The kernel fails what waits on the dead connection only when it is told to give it up.
        nbd-client -d /dev/nbd0 >/dev/null 2>&1 || true
        wait
        umount /mnt || umount -l /mnt
        wait_for 30 [ ! -e /sys/block/nbd0/pid ]
        connect
        mount -t $type /dev/nbd0 /mnt
        rm -rf /mnt/noise
        verify /mnt
        umount /mnt
        step "$type verified after the crash"
        disconnect
    done
}

"$CASE"
