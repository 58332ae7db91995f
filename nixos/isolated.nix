# Guests with a process of their own (`virtiofs.<name>.isolated`): a socket unit, which has the
# socket's mode and group and holds it while the process restarts, and a service that systemd shuts
# in before the program shuts itself in.
{ config, lib, ... }:

let
  cfg = config.services.castore-fs;
  inherit (import ./render.nix { inherit lib; }) execArgs specifiers storeUrl;
  declared = import ./declared.nix { inherit lib cfg; };

  daemon = "castore-fs.service";
  unit = name: "castore-fs-virtiofs-${name}";
  isolated = lib.filterAttrs (_: guest: guest.isolated) cfg.virtiofs;

  # As it is in the daemon's file, where all that was set for it ends.
  storeOf =
    name: guest:
    storeUrl
      {
        inherit daemon;
        unit = "${unit name}.service";
      }
      (lib.attrNames cfg.credentials)
      (declared.stores.${toString (declared.meant guest.store)} or { url = null; });
in
{
  config = lib.mkIf cfg.enable {
    systemd.sockets = lib.mapAttrs' (
      name: guest:
      lib.nameValuePair (unit name) {
        description = "castore-fs for the virtual machine ${name}";
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = specifiers guest.socket;
          SocketMode = guest.socketMode;
          RemoveOnStop = true;
        }
        // lib.optionalAttrs (guest.socketGroup != null) { SocketGroup = guest.socketGroup; };
      }
    ) isolated;

    systemd.services = lib.mapAttrs' (
      name: guest:
      let
        store = storeOf name guest;
      in
      lib.nameValuePair (unit name) {
        description = "castore-fs for the virtual machine ${name}";
        # The daemon makes the store, or serves it.
        wants = [ daemon ];
        after = [ daemon ];
        # A restart ends the guest. What a switch brings is for the guest's next start.
        restartIfChanged = false;
        serviceConfig = {
          Type = "notify";
          ExecStart = execArgs (
            [
              (lib.getExe cfg.package)
              "virtiofs"
              "--store"
              store.url
            ]
            ++ lib.optionals (guest.tag != null) [
              "--tag"
              guest.tag
            ]
            ++ lib.optionals (guest.root != null) [
              "--root"
              guest.root
            ]
            ++ lib.optional (guest.listRoot == false) "--list-root=refused"
            ++ lib.optional (guest.listRoot == "empty") "--list-root=empty"
            ++ guest.extraFlags
          );
          Restart = "on-failure";
          LoadCredential = map (
            credential: "${credential}:${specifiers (toString cfg.credentials.${credential})}"
          ) store.credentials;
          # No other process has to see its mounts, so it has the whole sandbox; what is left of
          # privileges it gives up by itself.
          CapabilityBoundingSet = "";
          LockPersonality = true;
          MemoryDenyWriteExecute = true;
          NoNewPrivileges = true;
          PrivateDevices = true;
          PrivateNetwork = lib.hasPrefix "local:" store.url;
          PrivateTmp = true;
          ProtectClock = true;
          ProtectControlGroups = true;
          ProtectHome = true;
          ProtectHostname = true;
          ProtectKernelLogs = true;
          ProtectKernelModules = true;
          ProtectKernelTunables = true;
          ProtectProc = "invisible";
          ProtectSystem = "strict";
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
            "AF_INET6"
          ];
          RestrictNamespaces = true;
          RestrictRealtime = true;
          RestrictSUIDSGID = true;
          SystemCallArchitectures = "native";
          UMask = "0077";
        }
        // lib.optionalAttrs (cfg.user != null) {
          User = cfg.user;
          Group = cfg.group;
        };
      }
    ) isolated;
  };
}
