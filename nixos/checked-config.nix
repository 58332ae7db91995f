# The daemon's file, judged by the daemon: a build fails on one that it would refuse, and reports what it
# would report. Files with tokens and certificates are on the machine that it is for.
{
  lib,
  runCommand,
  package,
  # The file.
  written,
}:

runCommand "castore-fs-checked.toml" { } ''
  ${lib.getExe package} check-config --no-files ${written}
  ln -s ${written} "$out"
''
