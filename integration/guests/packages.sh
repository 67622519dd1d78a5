#!/bin/sh
# Brings QEMU, kernels and a few programs for the guests of the tests out of the distribution's suites, into a
# directory of their own. Nothing is installed: every suite gets an apt state of its own, with an empty package
# database, so that nothing of this machine but its mirror takes part, and packages are only unpacked.
#
#   packages.sh DIR PART...     PART: qemu images tools dumps libvirt kernel-5.10 kernel-6.1 kernel-6.12 kernel-new
#                                     between kernel-N.M arm64 arm64-16k
#
# `between` only lists the kernels that backports offer, one N.M a line, in DIR/between/list; `kernel-N.M` brings one.
# A part that is there already is left alone; DIR/PART/.complete says that it is.
set -eu

dir=$1
shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# The mirror that this machine is set up to use: the address of its own release's main archive.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
    awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
[ -n "$mirror" ] || mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
[ -n "$mirror" ] || { echo "no Debian mirror in this machine's sources" >&2; exit 1; }

# suite NAME ARCH SUITE...: makes sure that the apt state NAME knows the packages of the suites
suite() {
    state=$dir/apt/$1
    arch=$2
    shift 2
    options="$state/apt.conf"
    # What the lists name leaves the mirror when there is something newer.
    [ -n "$(find "$state/.complete" -mtime -1 2>/dev/null)" ] && return
    mkdir -p "$state/lists/partial" "$state/archives/partial" "$state/empty"
    : >"$state/status"
    : >"$state/sources.list"
    for name in "$@"; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $name main" >>"$state/sources.list"
    done
    cat >"$options" <<CONF
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "5";
Acquire::Check-Valid-Until "false";
Dir::State "$state";
Dir::State::status "$state/status";
Dir::State::lists "$state/lists";
Dir::Cache "$state";
Dir::Cache::archives "$state/archives";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "$state/empty";
Dir::Etc::preferencesparts "$state/empty";
CONF
    APT_CONFIG=$options apt-get update -qq
    touch "$state/.complete"
}

# unpack TO PACKAGE...: downloads exactly these packages of the current suite and unpacks them
unpack() {
    to=$1
    shift
    mkdir -p "$to" "$state/fetch"
    rm -f "$state"/fetch/*.deb
    (cd "$state/fetch" && APT_CONFIG=$options apt-get download -qq "$@")
    for deb in "$state"/fetch/*.deb; do dpkg-deb -x "$deb" "$to"; done
    rm -f "$state"/fetch/*.deb
}

# closure TO PACKAGE...: the same with everything that the packages depend on
closure() {
    to=$1
    shift
    mkdir -p "$to"
    # What a run that was ended has left may be of another part.
    rm -f "$state"/archives/*.deb
    APT_CONFIG=$options apt-get install -qq -y --download-only "$@" >/dev/null
    for deb in "$state"/archives/*.deb; do dpkg-deb -x "$deb" "$to"; done
    rm -f "$state"/archives/*.deb
}

depends() {
    APT_CONFIG=$options apt-cache depends "$1" | sed -n 's/^ *Depends: *//p' | tr -d '<>'
}

# kernel TO METAPACKAGE: the image and modules that the metapackage stands for. In newer suites the image is itself
# only a name for a binary and its modules.
kernel() {
    image=$(depends "$2" | grep '^linux-image-' | head -n 1)
    parts=$(depends "$image" | grep -E '^linux-(binary|modules)-' || true)
    unpack "$1" "$image" $parts
}

# backports: the newest kernel of each N.M that the current suite's backports to trixie have, as "N.M package". Where
# the image is only a name, its binary and its modules must be there as well.
backports() {
    APT_CONFIG=$options apt-cache search --names-only '^linux-(image|binary|modules)-[0-9.]+\+deb13-amd64$' |
        cut -d ' ' -f 1 | sort -V | awk -F '-' '
            { has[$2 "-" $3] = 1; if ($2 == "image") images[++count] = $0 }
            END {
                for (at = 1; at <= count; at++) {
                    split(images[at], word, "-")
                    if (has["binary-" word[3]] && !has["modules-" word[3]]) continue
                    split(word[3], number, ".")
                    newest[number[1] "." number[2]] = images[at]
                }
                for (kernel in newest) print kernel, newest[kernel]
            }' | sort -V
}

for part in "$@"; do
    [ -e "$dir/$part/.complete" ] && continue
    rm -rf "${dir:?}/$part"
    case $part in
    qemu)
        suite backports amd64 bookworm bookworm-backports
        echo 'APT::Default-Release "bookworm-backports";' >>"$options"
        closure "$dir/$part" qemu-system-x86 qemu-system-arm
        ;;
    images)
        suite backports amd64 bookworm bookworm-backports
        echo 'APT::Default-Release "bookworm-backports";' >>"$options"
        closure "$dir/$part" qemu-utils
        ;;
    tools)
        suite trixie amd64 trixie
        closure "$dir/$part" busybox-static e2fsprogs xfsprogs btrfs-progs
        ;;
    libvirt)
        # A root of its own, with its own QEMU: libvirt has its paths compiled in.
        suite trixie amd64 trixie
        closure "$dir/$part" libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 seabios
        ;;
    dumps)
        suite forky amd64 forky
        closure "$dir/$part" makedumpfile
        ;;
    between)
        suite trixie-backports amd64 trixie trixie-backports
        mkdir -p "$dir/$part"
        backports | cut -d ' ' -f 1 | grep -vx 6.12 >"$dir/$part/list"
        ;;
    kernel-5.10) suite bullseye amd64 bullseye && kernel "$dir/$part" linux-image-amd64 ;;
    kernel-6.1) suite bookworm amd64 bookworm && kernel "$dir/$part" linux-image-amd64 ;;
    kernel-6.12) suite trixie amd64 trixie && kernel "$dir/$part" linux-image-amd64 ;;
    kernel-new) suite sid amd64 sid && kernel "$dir/$part" linux-image-amd64 ;;
    arm64)
        suite trixie-arm64 arm64 trixie
        kernel "$dir/$part" linux-image-arm64
        unpack "$dir/$part" busybox-static
        ;;
    arm64-16k)
        suite trixie-arm64 arm64 trixie
        kernel "$dir/$part" linux-image-arm64-16k
        unpack "$dir/$part" busybox-static
        ;;
    kernel-[0-9]*)
        suite trixie-backports amd64 trixie trixie-backports
        image=$(backports | sed -n "s/^${part#kernel-} //p")
        [ -n "$image" ] || { echo "backports have no $part" >&2; exit 1; }
        # One word a package.
        # shellcheck disable=SC2046
        unpack "$dir/$part" "$image" $(depends "$image" | grep -E '^linux-(binary|modules)-' || true)
        ;;
    *)
        echo "unknown part $part" >&2
        exit 2
        ;;
    esac
    touch "$dir/$part/.complete"
done
