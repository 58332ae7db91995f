# What the modules need of NixOS (./nixos.nix) and of its packages, for where there is nixpkgs' `lib` and
# nothing else.
# On NixOS itself the same cases run against the real thing (`checks.<system>.evaluation-nixos`).
{ lib }:

let
  inherit (lib) types;

  # No store is needed to evaluate: a package is its name.
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
    meta.mainProgram = name;
  };

  valueType =
    types.nullOr (
      types.oneOf [
        types.bool
        types.int
        types.float
        types.str
        types.path
        (types.attrsOf valueType)
        (types.listOf valueType)
      ]
    )
    // {
      description = "TOML value";
    };
in
rec {
  pkgs = {
    castore-fs = package "castore-fs";
    attr = package "attr";
    closureInfo = _: package "closure-info";
    coreutils = package "coreutils";
    findutils = package "findutils";
    gnugrep = package "gnugrep";
    gnused = package "gnused";
    nix = package "nix";
    util-linux = package "util-linux";
    systemd = package "systemd";
    runtimeShell = "/bin/sh";
    runCommand =
      name: _: _:
      package name;
    writeShellScript = name: _: package name;
    formats.toml = _: {
      type = valueType;
      generate = name: _: package name;
    };
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform.system = "x86_64-linux";
    };
  };

  module = import ./nixos.nix { inherit lib pkgs; };

  evaluate =
    modules:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [ module ] ++ modules;
    });
}
