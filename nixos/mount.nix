# One of `services.castore-fs.mounts`.
{ lib, ... }:

let
  inherit (lib) mkOption types;
in
{
  options = {
    store = mkOption {
      type = types.nullOr types.str;
      default = null;
      defaultText = lib.literalMD "the store, if there is only one";
      example = "main";
      description = "The name of the store that is mounted.";
    };

    path = mkOption {
      type = types.str;
      example = "/srv/tree";
      description = "Where. The folder is made.";
    };

    listRoot = mkOption {
      type = types.nullOr types.bool;
      default = null;
      example = true;
      description = ''
        Whether `ls` on the mount shows every root of the store; null for the daemon's default.
        Entries are found by name either way.
      '';
    };

    allowOther = mkOption {
      type = types.nullOr types.bool;
      default = null;
      description = ''
        Whether users other than the daemon's see the mount; null for the daemon's default.
      '';
    };

    overNixStore = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to layer the mount below {file}`/nix/store`, so that a store path that this machine
        has not got is found in the mount. The machine's own store stays on top and keeps taking what
        is built or fetched; booting and running what it has needs neither the mount nor the network.
        What is only below is unknown to this machine's Nix: it can be run, and is no valid path.
      '';
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this mount in the daemon's file.";
    };
  };
}
