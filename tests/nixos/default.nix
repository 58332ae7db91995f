# The flake's checks. What is evaluated is quick and reports what it found when it is evaluated; what is
# built is one derivation each; `vm-*` boot machines.
{ self, pkgs }:

let
  inherit (self.inputs) nixpkgs;
  inherit (nixpkgs) lib;

  standIn = import ./evaluation/stand-in.nix { inherit lib; };

  # One that is made when there is nothing to report, and fails with what there is.
  quiet =
    name: problems:
    if problems == [ ] then
      pkgs.runCommand name { } "touch $out"
    else
      throw "${name}:\n${lib.concatLines problems}";

  evaluation = arguments: (import ./evaluation.nix ({ inherit lib; } // arguments)).problems;

  onNixos =
    modules:
    nixpkgs.lib.nixosSystem {
      modules = [
        {
          nixpkgs.pkgs = pkgs;
          system.stateVersion = "26.05";
          boot.loader.grub.enable = false;
          fileSystems."/" = {
            device = "tmpfs";
            fsType = "tmpfs";
          };
        }
      ]
      ++ modules;
    };

  optionsDoc = import ../../nixos/options-doc.nix {
    inherit lib;
    inherit
      (standIn.evaluate [
        ../../nixos/module.nix
        ../../nixos/guest.nix
      ])
      options
      ;
  };

  nixSources = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../..;
  };

  machines = lib.mapAttrs' (name: test: lib.nameValuePair "vm-${name}" test) (
    import ./machines.nix { inherit self pkgs; }
  );
in
{
  package = pkgs.castore-fs;

  clippy = pkgs.castore-fs.overrideAttrs (old: {
    pname = "castore-fs-clippy";
    nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.clippy ];
    buildPhase = ''
      runHook preBuild
      cargo clippy --frozen --all-targets -- --deny warnings
      runHook postBuild
    '';
    doCheck = false;
    installPhase = "touch $out";
  });

  rustfmt = pkgs.runCommand "castore-fs-rustfmt" { nativeBuildInputs = [ pkgs.rustfmt ]; } ''
    find ${pkgs.castore-fs.src} -name '*.rs' -exec rustfmt --check --edition 2024 {} +
    touch $out
  '';

  nixfmt = pkgs.runCommand "castore-fs-nixfmt" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${nixSources} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';

  deadnix = pkgs.runCommand "castore-fs-deadnix" { nativeBuildInputs = [ pkgs.deadnix ]; } ''
    deadnix --fail ${nixSources}
    touch $out
  '';

  evaluation = quiet "castore-fs-evaluation" (evaluation {
    inherit (standIn) evaluate;
    exact = true;
  });

  evaluation-nixos = quiet "castore-fs-evaluation-nixos" (evaluation {
    evaluate = onNixos;
  });

  options-doc = quiet "castore-fs-options-doc" (
    lib.optional (
      optionsDoc != builtins.readFile ../../docs/nixos-options.md
    ) "docs/nixos-options.md is not what the modules have; write it with tests/nix/evaluate --write LIB"
  );
}
// machines
