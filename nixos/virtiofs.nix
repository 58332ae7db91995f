# One of `services.castore-fs.virtiofs`.
{ lib, name, ... }:

let
  inherit (lib) mkOption types;
in
{
  options = {
    store = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "disk";
      description = "The name of the store that is served; null for the only one.";
    };

    isolated = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether a process of its own serves this guest: one that has given up every privilege and every
        file but its store's, so that a guest that takes it over has gained nothing. It opens the store
        by its URL, so the store has to have one; to share the daemon's cache with it, give it a store
        with the URL `grpc+unix:` of a socket on which the daemon serves the cache. Without this the
        daemon serves the guest, along with everything else, and has one cache for all.
      '';
    };

    socket = mkOption {
      type = types.str;
      default = "/run/castore-fs-virtiofs/${name}/socket";
      defaultText = lib.literalExpression ''"/run/castore-fs-virtiofs/\${name}/socket"'';
      description = "The socket that the virtual machine's vhost-user-fs device connects to.";
    };

    socketMode = mkOption {
      type = types.strMatching "0?[0-7]{3}";
      default = "0660";
      description = "The socket's permissions: who may write to it may connect.";
    };

    socketGroup = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "kvm";
      description = ''
        The socket's group; null for the daemon's. Where the daemon makes the socket, it has it from its
        folder, so the socket is to stay where it is by default.
      '';
    };

    tag = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "castore";
      description = "The tag by which the guest mounts, for monitors that ask the device for it.";
    };

    root = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The directory to show at the top, instead of the store's root nodes.";
    };

    listRoot = mkOption {
      type = types.nullOr types.bool;
      default = null;
      description = "Whether the guest can list the root nodes, as it can by default.";
    };

    warmup = mkOption {
      type = types.nullOr (
        types.enum [
          "learn"
          "off"
        ]
      );
      default = null;
      example = "learn";
      description = ''
        Whether what the guest reads first is learned, and fetched ahead the next time that it or a mount
        of the same root starts cold; null for `off`. An isolated guest has nowhere to keep it.
      '';
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this device in the daemon's file; not for one that is isolated.";
    };

    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further arguments of `castore-fs virtiofs`; only for one that is isolated.";
    };
  };
}
