# shellcheck shell=bash disable=SC2154
# The guest of integration/demo, which sources this file: a Linux with Debian's kernel and Debian's files on its disk, emulated by
# QEMU. Its first program is init.sh beside this file: it runs each line that comes over the serial port, and answers with its status.
#
# Everything lies in $work (the demo's own directory) and in $guests (what packages.sh brought).

guest_memory=1024
guest_disk=768M
guest_process=

# Becomes a program out of an unpacked part, run with that part's own libraries: for a subshell.
become() {
    local part=$guests/$1 name=$2 loader binary
    shift 2
    loader=$(find "$part" -name ld-linux-x86-64.so.2 -print -quit)
    binary=$(find "$part" -path "*bin/$name" -print -quit)
    exec "$loader" --library-path "$part/usr/lib/x86_64-linux-gnu:$part/lib/x86_64-linux-gnu" "$binary" "$@"
}

# Puts a module behind all the modules that it needs into $work/first/modules, numbered in the order of loading.
add_module() {
    local name=$1 file need unpacked_file
    ! compgen -G "$work/first/modules/*-$name.ko" >/dev/null || return 0
    file=$(find "$guests/kernel-6.12" -name "${name//_/[-_]}.ko*" -print -quit)
    [ -n "$file" ] || return 0 # built into the kernel
    unpacked_file=$work/$name.ko
    case $file in
        *.xz) xz -dc "$file" >"$unpacked_file" ;;
        *) cp "$file" "$unpacked_file" ;;
    esac
    # A module says in its own text which others it needs.
    for need in $(tr '\0' '\n' <"$unpacked_file" | sed -n 's/^depends=//p' | tr ',' ' '); do add_module "${need//-/_}"; done
    mv "$unpacked_file" "$work/first/modules/$(printf '%03d' "$(find "$work/first/modules" -type f | wc -l)")-$name.ko"
}

# Makes the guest's first file system, in memory, and its disk, full of Debian's files.
make_guest() {
    local busybox=$guests/tools/usr/bin/busybox name
    mkdir -p "$work"/first/{bin,dev,proc,sys,modules}
    cp integration/guests/init.sh "$work/first/init"
    chmod 755 "$work/first/init"
    cp "$busybox" "$work/first/bin/busybox"
    ln -s busybox "$work/first/bin/sh"
    for name in virtio_ring virtio virtio_pci virtio_blk crc32c_generic ext4; do add_module "$name"; done
    (cd "$work/first" && find . | "$busybox" cpio -o -H newc --quiet 2>/dev/null) >"$work/first.cpio"

    mkdir -p "$work/files/work"
    cp -a "$guests/tools/usr" "$work/files/tools"
    cp -a "$guests/qemu/usr" "$work/files/qemu"
    (cd "$work/files" && find tools qemu -type f -print0 | sort -z | xargs -0 sha256sum) >"$work/sums"
    cp "$work/sums" "$work/files/sums"
    # A chain of checksums of which the last link is known only to the program, and a table that adds up when it is asked.
    cat >"$work/files/work/chain" <<'CHAIN'
link=start
number=0
while true; do
    link=$(echo "$link" | sha256sum)
    link=${link%% *}
    number=$((number + 1))
    echo "$number $link" >/run/link.new
    mv /run/link.new /run/link
    sleep 0.1
done
CHAIN
    cat >"$work/files/work/table" <<'TABLE'
mkfifo /run/ask
awk 'BEGIN {
    for (n = 1; n <= 300000; n++) table[n] = n
    print "" >"/run/table.ready"; close("/run/table.ready")
    getline <"/run/ask"
    for (n = 1; n <= 300000; n++) sum += table[n]
    printf "%.0f\n", sum >"/run/answer"
}'
TABLE
    truncate -s "$guest_disk" "$work/guest.disk"
    (become tools mke2fs -q -t ext4 -O '^orphan_file' -d "$work/files" "$work/guest.disk")
    rm -rf "$work/files" "$work/first"
}

# Starts the guest; with -incoming it waits for its state first. Its serial port and QEMU's monitor are pairs of pipes.
start_guest() {
    local name share=$guests/qemu/usr/share kernel
    kernel=$(find "$guests/kernel-6.12/boot" -name 'vmlinuz*')
    for name in serial monitor; do
        rm -f "$work/$name.in" "$work/$name.out"
        mkfifo "$work/$name.in" "$work/$name.out"
    done
    # Open for both directions: neither side then waits for the other to come, or takes its going for an end.
    exec {serial_in}<>"$work/serial.in" {serial_out}<>"$work/serial.out"
    exec {monitor_in}<>"$work/monitor.in" {monitor_out}<>"$work/monitor.out"
    become qemu qemu-system-x86_64 -L "$share/qemu" -L "$share/seabios" -nodefaults -no-user-config -display none \
        -machine q35 -accel tcg,thread=multi -cpu max,la57=off -smp 2 -m "${guest_memory}M" \
        -kernel "$kernel" -initrd "$work/first.cpio" -append 'console=ttyS0 panic=-1 mitigations=off quiet' \
        -drive "if=none,id=disk,format=raw,file=$work/guest.disk" -device virtio-blk-pci,drive=disk -device vmcoreinfo \
        -chardev "pipe,id=serial,path=$work/serial" -serial chardev:serial \
        -chardev "pipe,id=monitor,path=$work/monitor" -mon chardev=monitor,mode=control \
        "$@" </dev/null >"$work/qemu.log" 2>&1 &
    guest_process=$!
    monitor qmp_capabilities >/dev/null
}

# Ends the guest as a power cut would.
end_guest() {
    [ -n "$guest_process" ] || return 0
    kill -KILL "$guest_process" 2>/dev/null || true
    wait "$guest_process" 2>/dev/null || true
    guest_process=
    exec {serial_in}>&- {serial_out}>&- {monitor_in}>&- {monitor_out}>&-
}

# One order to QEMU's monitor, with its arguments as JSON; prints the line of its answer.
monitor() {
    local line since=$SECONDS
    printf '{"execute": "%s", "arguments": %s}\n' "$1" "${2:-"{}"}" >&"$monitor_in"
    while [ $((SECONDS - since)) -lt 60 ]; do
        kill -0 "$guest_process" 2>/dev/null || fail "QEMU has ended: $(tail -n 3 "$work/qemu.log")"
        IFS= read -r -t 1 -u "$monitor_out" line || continue
        case $line in
            *'"error"'*) fail "QEMU refuses $1: $line" ;;
            *'"return"'*) printf '%s\n' "$line"; return ;;
        esac
    done
    fail "QEMU does not answer $1"
}

# Waits until what an order to the monitor answers has this in it.
monitor_until() {
    local wanted=$2 answer since=$SECONDS
    while true; do
        answer=$(monitor "$1") || exit 1
        [[ $answer != *$wanted* ]] || return 0
        [[ $answer != *'"failed"'* ]] || fail "QEMU: $answer"
        [ $((SECONDS - since)) -lt 240 ] || fail "QEMU does not get to $wanted: $answer"
        sleep 0.2
    done
}

# Waits for the guest's first program.
await_guest() {
    local text='' more since=$SECONDS
    while [[ $text != *@@ready@@* ]]; do
        [ $((SECONDS - since)) -lt 240 ] || fail "the guest does not come up: $text"
        kill -0 "$guest_process" 2>/dev/null || fail "QEMU has ended: $(tail -n 3 "$work/qemu.log")"
        IFS= read -r -t 1 -N 1 -u "$serial_out" more || continue
        text+=$more
    done
}

# Has the guest run a line; prints what it printed, and fails as the line did.
in_guest() {
    local text='' more since=$SECONDS
    printf '%s\n' "$1" >&"$serial_in"
    # It answers @@STATUS@@ behind what the line printed.
    while [[ ! $text =~ @@([0-9]+)@@$ ]]; do
        [ $((SECONDS - since)) -lt 240 ] || fail "the guest does not answer: $text"
        kill -0 "$guest_process" 2>/dev/null || fail "QEMU has ended: $(tail -n 3 "$work/qemu.log")"
        IFS= read -r -t 1 -N 1 -u "$serial_out" more || continue
        text+=$more
    done
    local status=${BASH_REMATCH[1]}
    text=${text%@@*@@}
    text=${text#$'\n'}
    [ -z "$text" ] || printf '%s\n' "${text%$'\n'}"
    return "$status"
}
