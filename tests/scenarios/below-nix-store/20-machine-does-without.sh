# What the machine has itself does not wait: programs start while the daemon is stopped in its
# tracks, and the daemon, whose own files are in that store, starts again.
. "$SCENARIOS/kit.sh"
forget
systemctl kill --signal=SIGSTOP castore-fs.service
for program in ls cat systemctl castore-fs; do
    timeout 20 "$program" --version >/dev/null || {
        systemctl kill --signal=SIGCONT castore-fs.service
        fail "$program waits for the layer below"
    }
done
systemctl kill --signal=SIGCONT castore-fs.service
killed=$(systemctl show --property=MainPID castore-fs.service)
systemctl kill --signal=SIGKILL castore-fs.service
forget
# A stop that comes before systemd starts the next process would leave a dead mount.
another() { [ "$(systemctl show --property=MainPID castore-fs.service)" != "$killed" ]; }
within 30 another
within 30 systemctl is-active castore-fs.service
timeout 60 cat "/nix/store/00000000000000000000000000000000-tree/file"
