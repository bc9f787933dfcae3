# shellcheck shell=bash
# Functions of the scripts; each script sources this first. It makes the project's root the current folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
# Part of the names and labels of everything made on this machine; playbooks/local/vars.yml computes the same.
checkout="wsfleet-$(printf %s "$root" | sha1sum | cut -c 1-8)"
export PATH="$root/.venv/bin:$PATH"
# Molecule's state folder is named by the last part of the project's path, so two clones would share the default one.
export ANSIBLE_HOME="$root/.cache/ansible"

# A prefix for commands that need root.
sudo=()
[ "$EUID" -eq 0 ] || sudo=(sudo)

# part NAME COMMAND...: run a part of a script, and print its duration.
part() {
    part=$1
    local began=$SECONDS
    trap 'echo "== $part failed"' EXIT
    "${@:2}"
    trap - EXIT
    echo "== $part done in $((SECONDS - began)) s"
}

# Install the Debian packages that are missing.
packages() {
    local missing=() name
    # redis-tools instead of redis-server, which would start a service: see venv.
    for name in python3-venv openssh-client redis-tools shellcheck \
        podman runc netavark aardvark-dns iptables nftables mmdebstrap gpg debian-archive-keyring; do
        dpkg-query --show --showformat='${db:Status-Status}' "$name" 2> /dev/null | grep -qx installed || missing+=("$name")
    done
    # For the tests with the JavaScript SDK; any installation of Node is enough.
    command -v npm > /dev/null || missing+=(nodejs npm)
    # For the tests of the console.
    command -v chromium > /dev/null || missing+=(chromium)
    if [ ${#missing[@]} -gt 0 ]; then
        echo "Installing ${missing[*]}"
        install_packages "${missing[@]}"
    fi
    program haproxy haproxy
    program prometheus prometheus
}
# Install the packages that only scripts/bench needs: a compiler, and the servers that Debian has.
bench_packages() {
    [ -n "$(type -P cc)" ] || install_packages gcc libc6-dev
    program nginx nginx libnginx-mod-nchan
    [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || install_packages libnginx-mod-nchan
    program nats-server nats-server
}
# program NAME PACKAGE...: install a program without its service of the same name, which would
# take the machine's own ports.
program() {
    local name=$1
    [ -z "$(type -P "/usr/sbin/$name" "/usr/bin/$name")" ] || return 0
    "${sudo[@]}" ln -s /dev/null "/etc/systemd/system/$name.service"
    install_packages "${@:2}"
    "${sudo[@]}" rm "/etc/systemd/system/$name.service"
    ! systemctl --quiet is-enabled "$name" 2> /dev/null || "${sudo[@]}" systemctl --quiet disable "$name"
}
install_packages() {
    "${sudo[@]}" apt-get update --quiet=2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes \
        --no-install-recommends "$@" > /dev/null
}

# Make .venv from requirements.txt, with Debian's own Python, unless it is up to date.
venv() {
    local stamp
    stamp=$(echo "$root"; /usr/bin/python3 --version; sha256sum requirements.txt app/pyproject.toml)
    [ "$(cat .venv/stamp 2> /dev/null)" = "$stamp" ] && return
    /usr/bin/python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable app
    # In Debian, redis-server is the same program as redis-check-rdb under another name.
    ln -s /usr/bin/redis-check-rdb .venv/bin/redis-server
    echo "$stamp" > .venv/stamp
}

# Fail with one line that names the reason if podman cannot run VMs here. Tries a container that does nothing but has
# the options of a VM in playbooks/local/create.yml. Its programs are this machine's. Where a VM runs, podman works.
podman_works() {
    [ -z "$("${sudo[@]}" podman ps --quiet --filter "label=wsfleet.checkout=$checkout" 2> /dev/null)" ] || return 0
    local error result=0 files image="localhost/$checkout/trial" options=(--rm --systemd=always --volume /usr:/usr:ro)
    files=$(ulimit -Hn)
    if [ "$files" = unlimited ] || [ "$files" -gt 65536 ]; then files=65536; fi
    options+=(--ulimit "nofile=$files" --ulimit nproc=30000 "--cap-add=NET_ADMIN,NET_RAW,SYS_ADMIN,SYS_PTRACE")
    [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || options+=(--runtime runc)
    error=$({
        "${sudo[@]}" podman info &&
            trial_root | "${sudo[@]}" podman import --quiet --change "LABEL wsfleet.checkout=$checkout" - "$image" &&
            "${sudo[@]}" podman run "${options[@]}" "$image" /usr/bin/true
    } 2>&1 > /dev/null) || result=1
    "${sudo[@]}" podman rmi --force "$image" > /dev/null 2>&1 || true
    [ "$result" -ne 0 ] || return 0
    error=$(sed '/level=warning/d' <<< "$error" | tail -n 1)
    echo "$0: podman cannot run VMs on this machine: ${error:-it gives no reason}." \
        "Use a machine or a VM where root may mount file systems and make network interfaces;" \
        "a container needs --privileged, and a volume at /var/lib/containers." >&2
    return 1
}
# Write a root file system (a tar archive) whose programs come from a volume mounted at /usr.
trial_root() {
    local folder name
    folder=$(mktemp -d)
    mkdir "$folder/usr"
    for name in bin lib lib64 sbin; do ln -s "usr/$name" "$folder/$name"; done
    tar --create --directory "$folder" .
    rm -r "$folder"
}

# remove_vms [FLEET]: remove the containers, volumes and networks of a fleet, or of all fleets of this checkout.
remove_vms() {
    local filter=(--quiet --filter "label=wsfleet.checkout=$checkout")
    [ $# -eq 0 ] || filter+=(--filter "label=wsfleet.fleet=$1")
    "${sudo[@]}" podman ps --all "${filter[@]}" | xargs --no-run-if-empty "${sudo[@]}" podman rm --force --time 0 > /dev/null
    # By name: podman 4 takes two labels for one or the other.
    "${sudo[@]}" podman volume ls --quiet --filter "name=^$checkout-${1+$1-}" |
        xargs --no-run-if-empty "${sudo[@]}" podman volume rm > /dev/null
    "${sudo[@]}" podman network ls "${filter[@]}" | xargs --no-run-if-empty "${sudo[@]}" podman network rm > /dev/null
}

# Remove the images of the VMs.
remove_images() {
    "${sudo[@]}" podman images --quiet --filter "label=wsfleet.checkout=$checkout" | sort --unique |
        xargs --no-run-if-empty "${sudo[@]}" podman rmi --force > /dev/null
}

# Remove generated files; .venv stays.
remove_files() {
    rm -rf .cache .ansible
    remove_generated_inventory inventory/{local,small} molecule/*/inventory
}

# remove_generated_inventory INVENTORY...: remove the generated files about VMs from these inventories.
remove_generated_inventory() {
    local inventory
    for inventory in "$@"; do
        rm -rf "$inventory/.fleet.json" "$inventory/group_vars/all/vms.yml" "$inventory/tls"
    done
}

# local_inventory NAME: print the folder of inventory/NAME; fail unless its hosts are VMs on this machine.
local_inventory() {
    if ! grep --quiet --no-messages "^    vm_fleet: $1\$" "inventory/$1/hosts.yml"; then
        echo "$0: inventory/$1 has no VMs on this machine; use local or small" >&2
        return 2
    fi
    echo "inventory/$1"
}
