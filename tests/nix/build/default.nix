# Builds nixos/package.nix without nixpkgs: from exactly its file set, by the phases of ./builder.sh, with
# the machine's own Rust and crates, outside of Nix's sandbox. Gives what CI builds:
#
#   package   the package
#   checked   by name, what nixos/checked-config.nix makes of each file in `configurations`
#
# What nixpkgs' `rustPlatform.buildRustPackage` does otherwise is in docs/nixos.md. What nixos/package.nix
# has and this does not know is an error here: each argument has its phase in ./builder.sh.
{
  # A directory of TOML files.
  configurations ? ../../nixos/evaluation/expected,
}:

let
  lib = import ./lib.nix;
  system = builtins.currentSystem;
  builder = "/bin/bash";

  # Where the machine's tools are, and how it builds: so that crates which its tests have built are not
  # built again.
  machine = builtins.listToAttrs (
    builtins.filter (variable: variable.value != "") (
      map
        (name: {
          inherit name;
          value = builtins.getEnv name;
        })
        [
          "CARGO_BUILD_JOBS"
          "CARGO_HOME"
          "CARGO_INCREMENTAL"
          "CARGO_PROFILE_DEV_DEBUG"
          "CARGO_PROFILE_TEST_DEBUG"
          "CARGO_TARGET_DIR"
          "PATH"
          "RUSTUP_HOME"
        ]
    )
  );

  rustPlatform.buildRustPackage =
    {
      pname,
      version,
      src,
      cargoLock,
      nativeBuildInputs,
      cargoTestFlags,
      checkFlags,
      postInstall,
      meta,
    }:
    derivation (
      machine
      // {
        name = "${pname}-${version}";
        inherit
          system
          builder
          src
          nativeBuildInputs
          cargoTestFlags
          checkFlags
          postInstall
          ;
        cargoLock = cargoLock.lockFile;
        args = [ ./builder.sh ];
      }
    )
    // {
      inherit meta;
    };

  package = import ../../../nixos/package.nix {
    inherit lib rustPlatform;
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform = null;
    };
    # Its functions are in ./builder.sh.
    installShellFiles = "installShellFiles";
  };

  checked =
    file:
    import ../../../nixos/checked-config.nix {
      inherit lib package;
      runCommand =
        name: variables: script:
        derivation (
          variables
          // {
            inherit name system builder;
            inherit (machine) PATH;
            # The shell has to stay until the end, as in nixpkgs: a command in its place that closes its
            # output before it exits (ln) is killed by Nix now and then.
            args = [
              "-euc"
              "${script}\nexit 0\n"
            ];
          }
        );
      written = configurations + "/${file}";
    };
in
{
  inherit package;
  checked = builtins.listToAttrs (
    map (file: {
      name = lib.removeSuffix ".toml" file;
      value = checked file;
    }) (builtins.filter (lib.hasSuffix ".toml") (builtins.attrNames (builtins.readDir configurations)))
  );
}
