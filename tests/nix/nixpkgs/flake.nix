# What stands for nixpkgs where there is only its `lib` and a small package set: enough for this
# repository's flake to be evaluated, down to every derivation. Nothing of it can be built, and the
# machines are as much of NixOS as tests/nixos/evaluation/stand-in.nix.
#
# tests/nix/evaluate puts this into a directory of its own, beside `lib`, `packages` (a function like
# nixpkgs' default.nix) and `stand-in.nix`.
{
  outputs =
    _:
    let
      lib = import ./lib;
      standIn = import ./stand-in.nix { inherit lib; };

      # What our flake takes of nixpkgs and a small set has not got, or not in nixpkgs' shape.
      missing =
        final: prev:
        let
          named = name: final.runCommand name { meta.mainProgram = name; } "";
        in
        lib.genAttrs (lib.filter (name: !prev ? ${name}) [
          "attr"
          "deadnix"
          "fuse3"
          "garage_2"
          "nixfmt"
          "qemu_test"
          "rust-analyzer"
        ]) named
        // {
          closureInfo = _: named "closure-info";
          formats.toml = arguments: {
            inherit (standIn.pkgs.formats.toml arguments) type;
            generate =
              name: value:
              final.runCommand name {
                value = builtins.toJSON value;
                passAsFile = [ "value" ];
              } "json2toml $valuePath $out";
          };
          mkShell =
            { inputsFrom, packages, ... }@arguments:
            final.runCommand "shell" (
              removeAttrs arguments [
                "inputsFrom"
                "packages"
              ]
              // {
                nativeBuildInputs = packages ++ lib.concatMap (package: package.nativeBuildInputs) inputsFrom;
              }
            ) "";
          treefmt.withConfig =
            { runtimeInputs, settings }:
            final.runCommand "treefmt" {
              inherit runtimeInputs;
              settings = builtins.toJSON settings;
              meta.mainProgram = "treefmt";
            } "";
          # A test is its script and what its machines come to; an assertion that fails is an error.
          testers = prev.testers or { } // {
            runNixOSTest =
              test:
              let
                nodes = lib.mapAttrs (_: node: (nixosSystem final [ node ]).config) test.nodes;
                failed = lib.concatMap (
                  config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions)
                ) (lib.attrValues nodes);
                summary = config: {
                  inherit (config.services.castore-fs) rendered;
                  units = lib.mapAttrs (_: unit: unit.text) config.systemd.units;
                  etc = lib.mapAttrs (_: file: file.source) config.environment.etc;
                };
              in
              assert lib.assertMsg (failed == [ ]) (lib.concatLines failed);
              final.runCommand "vm-test-run-${test.name}" {
                inherit (test) testScript;
                nodes = builtins.toJSON (lib.mapAttrs (_: summary) nodes);
              } "";
          };
        };

      plain = default: lib.mkOption { inherit default; };
      merged = lib.mkOption {
        type = lib.types.anything;
        default = { };
      };
      nixosSystem =
        pkgs: modules:
        lib.evalModules {
          modules = [
            standIn.module
            {
              options = {
                nixpkgs.pkgs = plain pkgs;
                boot.kernelParams = plain [ ];
                boot.loader.grub.enable = plain false;
                boot.loader.systemd-boot.enable = plain false;
                services.garage = merged;
                specialisation = merged;
                system.boot.loader.kernelFile = plain "bzImage";
                system.build = plain {
                  toplevel = derivation {
                    name = "toplevel";
                    system = "none";
                    builder = "none";
                  };
                  kernel = "/kernel";
                  initialRamdisk = "/initial-ramdisk";
                };
                virtualisation = merged;
              };
            }
            ({ config, ... }: { _module.args.pkgs = config.nixpkgs.pkgs; })
          ]
          ++ modules;
        };
    in
    {
      lib = lib.extend (_: _: { nixosSystem = { modules }: nixosSystem null modules; });

      legacyPackages =
        lib.genAttrs
          [
            "x86_64-linux"
            "aarch64-linux"
          ]
          (
            system:
            import ./packages {
              inherit system;
              config = { };
              overlays = [ missing ];
            }
          );
    };
}
