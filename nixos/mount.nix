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
      example = "main";
      description = ''
        The name of the store that is mounted; null for the only one.
      '';
    };

    path = mkOption {
      type = types.str;
      example = "/srv/tree";
      description = "Where. The directory is made if it is not there.";
    };

    listRoot = mkOption {
      type = types.nullOr (import ./listing.nix { inherit types; });
      default = null;
      example = false;
      description = ''
        What `ls` on the mount shows: every root of the store (`true`, the default), an error (`false`:
        EPERM), or an empty directory (`"empty"`, the default of a mount that is layered below the Nix
        store). Entries are found by name in any case.
      '';
    };

    allowOther = mkOption {
      type = types.nullOr types.bool;
      default = null;
      description = "Whether users other than the daemon's see the mount, as they do by default.";
    };

    mountOptions = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "noexec"
        "nosymfollow"
      ];
      description = ''
        Options of mount(8) that do not depend on the file system, beside `ro`, `nosuid`, `nodev` and
        `noatime`, which are the default.
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
        While the store below cannot be reached, a path that was never looked up does not exist, so
        that Nix continues with its work; `systemctl reload castore-fs-nix-store` has the machine look again.
      '';
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this mount in the daemon's file.";
    };
  };
}
