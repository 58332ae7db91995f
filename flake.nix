{
  description = "A content-addressed file system: mounted read-only over FUSE, or served to guests over virtiofs";

  # The release, not unstable: it is what the machines run that this is for, and its kernel (6.18)
  # has what a hand-over without a lost request needs (6.9). Rust is new enough in both.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forEachSystem =
        f:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: f (nixpkgs.legacyPackages.${system}.extend self.overlays.default)
        );
    in
    {
      overlays.default = final: _: { castore-fs = final.callPackage ./nixos/package.nix { }; };

      packages = forEachSystem (pkgs: {
        inherit (pkgs) castore-fs;
        default = pkgs.castore-fs;
      });

      # `nix run . -- mount --import DIR MOUNTPOINT` is the mount for an afternoon.
      apps = forEachSystem (pkgs: {
        default = {
          type = "app";
          program = lib.getExe pkgs.castore-fs;
          meta = { inherit (pkgs.castore-fs.meta) description; };
        };
      });

      nixosModules = {
        default =
          { lib, pkgs, ... }:
          {
            imports = [ ./nixos/module.nix ];
            services.castore-fs.package =
              lib.mkDefault
                self.packages.${pkgs.stdenv.hostPlatform.system}.default;
          };
        guest = ./nixos/guest.nix;
      };

      devShells = forEachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ pkgs.castore-fs ];
          packages = [
            pkgs.clippy
            pkgs.rustfmt
            pkgs.rust-analyzer
            pkgs.fuse3
            pkgs.nixfmt
            pkgs.deadnix
          ];
          env.RUST_SRC_PATH = pkgs.rustPlatform.rustLibSrc;
        };
      });

      formatter = forEachSystem (
        pkgs:
        pkgs.treefmt.withConfig {
          runtimeInputs = [
            pkgs.deadnix
            pkgs.nixfmt
            pkgs.rustfmt
          ];
          settings = {
            on-unmatched = "info";
            tree-root-file = "flake.nix";
            formatter = {
              deadnix = {
                command = "deadnix";
                options = [ "--edit" ];
                includes = [ "*.nix" ];
                priority = 1;
              };
              nixfmt = {
                command = "nixfmt";
                includes = [ "*.nix" ];
                priority = 2;
              };
              rustfmt = {
                command = "rustfmt";
                options = [
                  "--edition"
                  "2024"
                ];
                includes = [ "*.rs" ];
              };
            };
          };
        }
      );

      checks = forEachSystem (pkgs: import ./tests/nixos { inherit self pkgs; });
    };
}
