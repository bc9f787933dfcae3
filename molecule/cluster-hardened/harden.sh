#!/usr/bin/env bash
# Harden a machine. $PASSWORD is what sudo asks the user `deploy` for from here on.
set -euo pipefail

# The umask of every login, and of what sudo runs.
sed -i 's/^UMASK.*/UMASK 027/' /etc/login.defs
echo 'umask 027' | tee /etc/profile.d/umask.sh >> /etc/bash.bashrc
echo 'session optional pam_umask.so umask=027' >> /etc/pam.d/common-session

# Nothing is executed where everybody may write.
mount -o remount,noexec,nosuid,nodev /tmp
mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmpfs /var/tmp
mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmpfs /dev/shm

# Nobody sees the processes of others.
mount -o remount,hidepid=2 /proc

echo "deploy:$PASSWORD" | chpasswd
echo 'deploy ALL=(ALL) ALL' > /etc/sudoers.d/deploy
echo 'Defaults umask = 0027, umask_override' > /etc/sudoers.d/umask
