. "$SCENARIOS/nix-unreachable/files/kit.sh"
start_far
within 30 look_again /nix/store/00000000000000000000000000000000-seen/file
systemctl kill --signal=SIGSTOP far.service
works silent
# Looked up while nothing answers, it does not exist.
! test -e /nix/store/11111111111111111111111111111111-later || fail "there is what is not"
