# The daemon's file, judged by the daemon: a build fails on one that it would refuse, and says what it
# would say.
{
  lib,
  runCommand,
  package,
  # The file.
  written,
}:

runCommand "castore-fs-checked.toml" { } ''
  ${lib.getExe package} check-config ${written}
  ln -s ${written} "$out"
''
