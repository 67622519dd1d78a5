#!/bin/sh
# Fetches QEMU from bookworm-backports with every library it needs, and unpacks it into a directory of
# its own: nothing is installed, the machine's package lists are not touched, and no root is needed.
#
#   integration/fetch-qemu.sh DIRECTORY
#
# Afterwards DIRECTORY/run/qemu-system-x86_64 starts it. Fetching again is a matter of a second.
set -eu

directory=${1:?"usage: fetch-qemu.sh DIRECTORY"}
suite=${QEMU_SUITE:-bookworm-backports}
mirror=${QEMU_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

if [ -x "$directory/run/qemu-system-x86_64" ]; then
    exit 0
fi
for tool in apt-get dpkg-deb flock; do
    command -v "$tool" >/dev/null || { echo "fetch-qemu: $tool is needed" >&2; exit 1; }
done

mkdir -p "$directory"
# Tests run side by side; the first one fetches.
exec 9>"$directory/lock"
flock 9
if [ -x "$directory/run/qemu-system-x86_64" ]; then
    exit 0
fi
directory=$(cd "$directory" && pwd)
apt=$directory/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/parts"
# What is installed here counts as installed, so that only what is missing is fetched.
cp /var/lib/dpkg/status "$apt/status"
cat >"$apt/sources.list" <<SOURCES
deb [signed-by=$keyring] $mirror bookworm main
deb [signed-by=$keyring] $mirror $suite main
SOURCES
cat >"$apt/apt.conf" <<CONFIG
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
Dir::Etc::preferencesparts "$apt/parts";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Debug::NoLocking "true";
CONFIG

APT_CONFIG=$apt/apt.conf
export APT_CONFIG
apt-get -qq update
apt-get -qq --yes --download-only -t "$suite" install qemu-system-x86 qemu-system-data >/dev/null

mkdir -p "$directory/root" "$directory/run"
for package in "$apt"/archives/*.deb; do
    dpkg-deb -x "$package" "$directory/root"
done

# The libraries beside it, and its own firmware, whatever the machine has.
cat >"$directory/run/qemu-system-x86_64" <<'RUN'
#!/bin/sh
root=$(cd "$(dirname "$0")/../root" && pwd)
libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
RUN
chmod +x "$directory/run/qemu-system-x86_64"
"$directory/run/qemu-system-x86_64" --version
