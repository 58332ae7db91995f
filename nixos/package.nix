# The package: the program, its manual pages and completions, the systemd units and the helper
# that mount(8) looks for. The units are those of `systemd/`, with the program's path put in.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
}:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
  runsHere = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../benches
      ../build.rs
      ../docs
      ../fuzz
      ../proto
      ../src
      ../systemd
      # All but what runs the package itself.
      (lib.fileset.difference ../tests (
        lib.fileset.unions [
          ../tests/nix
          ../tests/nixos
          ../tests/scenarios
          ../tests/system
        ]
      ))
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ installShellFiles ];

  # What can be proved in a build: there is no /dev/fuse there, no privilege, and no data made by other
  # implementations. The rest is for tests/nixos. None of these measures time.
  cargoTestFlags = [
    "--lib"
    "--bins"
    "--test=cli_reference"
    "--test=composition"
    "--test=local_store"
    "--test=object_store"
  ];
  checkFlags = [ "--skip=the_peer" ];

  postInstall = ''
    install -Dm444 -t "$out/lib/systemd/system" systemd/*
    install -Dm444 -t "$out/share/castore-fs/grafana" docs/grafana/*
    substituteInPlace "$out"/lib/systemd/system/* --replace-quiet /usr/bin/ "$out/bin/"
    for helper in mount.castore-fs mount.fuse.castore-fs; do
      ln -s castore-fs "$out/bin/$helper"
    done
  ''
  # Both are written by the program itself, which a cross build cannot run.
  + lib.optionalString runsHere ''
    "$out/bin/castore-fs" generate completions completions
    installShellCompletion --bash completions/castore-fs.bash
    installShellCompletion --fish completions/castore-fs.fish
    installShellCompletion --zsh completions/_castore-fs
    "$out/bin/castore-fs" generate man man
    installManPage man/*
  '';

  meta = {
    inherit (manifest) description homepage;
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    mainProgram = "castore-fs";
    platforms = lib.platforms.linux;
  };
}
