# Evaluates the examples of the documentation. `directory` has a directory for each, whose default.nix is a
# function of `pkgs` and `castore-fs` (our flake) to what the documentation shows: a flake, a module,
# or a test. Gives, by name, what became of it: for each of its machines the daemon's file and the
# file systems. An assertion that fails is an error.
{
  lib,
  standIn,
  directory,
}:

let
  castore-fs.nixosModules = {
    default = ../../nixos/module.nix;
    guest = ../../nixos/guest.nix;
  };

  machine =
    module:
    let
      inherit
        (standIn.evaluate [
          castore-fs.nixosModules.default
          castore-fs.nixosModules.guest
          module
        ])
        config
        ;
      failed = lib.filter (a: !a.assertion) config.assertions;
    in
    assert lib.assertMsg (failed == [ ]) (lib.concatMapStringsSep "\n" (a: a.message) failed);
    {
      inherit (config.services.castore-fs) rendered;
      inherit (config) fileSystems;
      units = lib.mapAttrs (_: unit: unit.text) config.systemd.units;
    };

  pkgs = standIn.pkgs // {
    testers.runNixOSTest = test: { inherit (test) nodes; };
  };

  nixpkgs.lib = lib // {
    nixosSystem = { modules }: { nodes.machine.imports = modules; };
  };

  became =
    name:
    let
      value = import (directory + "/${name}") { inherit pkgs castore-fs; };
    in
    if value ? outputs then
      lib.mapAttrs (_: system: lib.mapAttrs (_: machine) system.nodes)
        (value.outputs { inherit nixpkgs castore-fs; }).nixosConfigurations
    else if value ? nodes then
      { test = lib.mapAttrs (_: machine) value.nodes; }
    else
      { module.machine = machine value; };
in
lib.mapAttrs (name: _: became name) (builtins.readDir directory)
