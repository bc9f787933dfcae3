#!/usr/bin/env bash
# Write a VM's root file system (a tar archive) to stdout, made by mmdebstrap from Debian's own mirror.
# It is like a fresh Debian server: systemd, sshd, Python and a user with a key and sudo.
# In it as well: libfaketime, by which scripts/chaos sets the clock of one VM.
# The packages that the roles install are only downloaded, into apt's cache: quick, and no network needed.
# Usage: image.sh RELEASE PUBLIC-KEY
set -euo pipefail
release=$1
export VM_PUBLIC_KEY=$2

# shellcheck disable=SC2016 # in both hooks mmdebstrap fills in $1, the new root
login='
    useradd --root "$1" --create-home --shell /bin/bash --password "*" deploy
    echo "deploy ALL=(ALL) NOPASSWD: ALL" > "$1/etc/sudoers.d/deploy"
    chmod 0440 "$1/etc/sudoers.d/deploy"
    mkdir -m 0700 "$1/home/deploy/.ssh"
    echo "$VM_PUBLIC_KEY" > "$1/home/deploy/.ssh/authorized_keys"
    chroot "$1" chown -R deploy: /home/deploy/.ssh'
# shellcheck disable=SC2016
download='
    chroot "$1" apt-get clean
    chroot "$1" apt-get install -qq --download-only --no-install-recommends \
        haproxy keepalived nftables python3-venv redis-sentinel redis-server redis-tools systemd-timesyncd \
        prometheus prometheus-alertmanager prometheus-node-exporter prometheus-redis-exporter'

# When it fails, mmdebstrap ends its whole process group: in a session of its own that is not Ansible's.
# Left out because nobody misses them here: manuals, translations, an fsync for each package.
exec setsid --wait mmdebstrap --quiet --mode=root --variant=minbase \
    --include=systemd,systemd-sysv,dbus,openssh-server,sudo,python3,python3-apt \
    --include=ca-certificates,curl,iproute2,iputils-ping,procps,libfaketime \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::GzipIndexes "true"' \
    --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --skip=cleanup/apt --customize-hook="set -e; $login" --customize-hook="set -e; $download" \
    "$release" -
